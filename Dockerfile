# An image for NVIDIA GPUs. The host needs driver 580 or newer and the NVIDIA container toolkit:
#
#     docker build -t tppo-rl .
#     docker run --gpus all --shm-size 32g -v $PWD/runs:/tppo-rl/runs tppo-rl train file configs/quickstart.yaml
#
# Weights go from learners to engines through shared memory, so --shm-size must hold the policy once; docker's default is 64 MB.
FROM python:3.11-bookworm

WORKDIR /tppo-rl
# Packages first: they change less often than the code.
COPY Makefile pyproject.toml requirements-gpu.lock README.md LICENSE ./
COPY tppo_rl tppo_rl
COPY algorithms algorithms
COPY configs configs
COPY envs envs
COPY tune tune
RUN make setup-gpu
COPY examples examples

ENTRYPOINT [".venv-gpu/bin/tppo-rl"]
CMD ["--help"]
