# Run by Snakemake in the new environment, from the repository's root: the same three steps as in the Makefile.
set -euo pipefail
pip install torch==2.13.0
pip install --no-deps -r envs/requirements.lock
pip install --no-deps --editable .
