"""Images in bulk: shards of a plan in a folder, made by processes or by an engine such as Ray, and checked."""

from .dask_engine import on_dask
from .engines import Engine, make_all_with
from .plan import FORMATS, Plan, plan_for
from .ray_engine import on_ray
from .run import Done, Report, make_all, make_shard, make_shards, model_of
from .verify import Verdict, check_hashes, check_sample

__all__ = [
    "FORMATS",
    "Done",
    "Engine",
    "Plan",
    "Report",
    "Verdict",
    "check_hashes",
    "check_sample",
    "make_all",
    "make_all_with",
    "make_shard",
    "make_shards",
    "model_of",
    "on_dask",
    "on_ray",
    "plan_for",
]
