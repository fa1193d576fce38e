"""The update step in plain torch, and the RLlib classes that host it.

Plain torch, no Ray: batch, micro_batches, models, optimizers, collective, targets, policy_step, critic_step, metric_sums,
sharding, update. Hosts: module (RLModule), connectors (learner pipeline), learner (TorchLearner), learner_group.
"""
