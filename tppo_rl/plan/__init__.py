"""What a run would cost before it is made: `tppo-rl plan`. NumPy only, neither Ray nor torch nor an engine.

lengths  ─┐                        ┌─ fragments: what an update processes ─┐
          ├─▶ predict, per window ─┤                                       ├─▶ seconds per trained token ─▶ report
costs    ─┘      and mode          ├─ generation: what engine steps cost ──┤       and the machine's split
                                   └─ staleness: the queue, simulated ─────┘
"""
