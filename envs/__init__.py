if __name__ != "tppo_rl.envs":
    raise ImportError("import this package as 'tppo_rl.envs'")
