"""Making the ledger anew from the footers of the lake's files, when it was lost.

remains     reads the footers: which files there are, and which batches wrote them
chains      finds batches that follow each other in the offsets without gap or overlap
committed   decides which batches and moves were committed, and names what is lost
taken_over  the result files that go on with their revisions
plan        what will be done, for a person to read first
contents    what the new ledger holds then; writing it
"""

from uniq_pipeline.rebuild.contents import carry_out
from uniq_pipeline.rebuild.plan import Plan, plan_rebuild, refuse_losses

__all__ = ["Plan", "carry_out", "plan_rebuild", "refuse_losses"]
