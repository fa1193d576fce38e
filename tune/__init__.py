if __name__ != "tppo_rl.tune":
    raise ImportError("import this package as 'tppo_rl.tune'")
