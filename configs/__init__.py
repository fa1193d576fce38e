if __name__ != "tppo_rl.configs":
    raise ImportError("import this package as 'tppo_rl.configs'")
