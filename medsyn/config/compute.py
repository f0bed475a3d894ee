"""Settings of what a job may use."""

from __future__ import annotations

from pydantic import Field

from medsyn.config.section import Section


class ComputeConfig(Section):
    """What a job may use; the scheduler's own words (partition, account) live in the profile."""

    num_gpus_training: int = Field(
        0, ge=0, le=1024, description="GPUs of a training job on each of its nodes, one process each"
    )
    num_nodes_training: int = Field(
        1, ge=1, le=10_000, description="nodes of a training job; more than 1: on SLURM only"
    )
    num_gpus_inference: int = Field(0, ge=0, le=1024, description="per sampling, embedding and feature job")
    num_threads_training: int = Field(
        1, ge=1, le=10_000, description="CPU threads per training job; part of bit-identity"
    )
