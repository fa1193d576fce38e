"""What a Ray actor does with its own process."""

from __future__ import annotations

import logging
import os
import sys

import ray

logger = logging.getLogger(__name__)


def can_begin_anew(*, has_worked: bool) -> bool:
    """Whether Ray is to start this process again when it ends: it is an actor's, and a start of it has gone well before.

    Args:
        has_worked: Whether the start of this process has gone well.
    """
    if not ray.is_initialized():
        return False
    context = ray.get_runtime_context()
    return context.get_actor_id() is not None and (has_worked or context.was_current_actor_reconstructed)


def end_process(reason: str) -> None:
    """Ends this actor's process as a crash would. Ray takes every other end for one that was wanted, and starts no new one."""
    logger.error(reason)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
