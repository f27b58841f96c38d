"""Images in bulk: shards of a plan in a folder, made by one process or by many, and checked afterwards."""

from .plan import FORMATS, Plan, plan_for
from .run import Done, Report, make_all, make_shard, model_of
from .verify import Verdict, check_hashes, check_sample

__all__ = [
    "FORMATS",
    "Done",
    "Plan",
    "Report",
    "Verdict",
    "check_hashes",
    "check_sample",
    "make_all",
    "make_shard",
    "model_of",
    "plan_for",
]
