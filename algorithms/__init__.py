if __name__ != "tppo_rl.algorithms":
    raise ImportError("import this package as 'tppo_rl.algorithms'")
