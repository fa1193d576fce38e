from __future__ import annotations

from helpers import make_fragment

from tppo_rl.learner.partition import partition


def test_shares_balance_positions_and_may_be_empty() -> None:
    fragments = [make_fragment(tokens=[1] * size, context=[1] * 3) for size in (9, 1, 1, 5, 7, 3)]
    divided = partition(fragments, 2)
    assert sorted(map(id, divided[0] + divided[1])) == sorted(map(id, fragments))
    loads = [sum(fragment.num_positions for fragment in share) for share in divided]
    assert abs(loads[0] - loads[1]) <= 3
    assert [len(share) for share in partition(fragments[:1], 3)] == [1, 0, 0]


def test_an_episode_keeps_its_learner_where_that_has_its_contexts() -> None:
    updates = [[make_fragment(tokens=[1] * size, episode_id=episode) for episode in range(6)] for size in (9, 4)]
    homes = []
    for fragments in updates:
        divided = partition(fragments, 2, same_learner=True)
        homes.append({fragment.episode_id: index for index, share in enumerate(divided) for fragment in share})
        assert [len(share) for share in divided] == [3, 3]
    assert homes[0] == homes[1]
    by_prompt = [make_fragment(prompt_index=1, episode_id=episode) for episode in (4, 5)]
    assert [len(share) for share in partition(by_prompt, 2, same_learner=True, whole_groups=True)] == [0, 2]
