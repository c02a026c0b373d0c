# ensemblead with its CUDA kernels. Build it from the root of a clone, and run it with `docker run --gpus all`:
#   docker build -f docker/cuda.Dockerfile -t ensemblead:cuda .
FROM nvidia/cuda:12.8.1-devel-ubuntu24.04 AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ python3 python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN python3 -m venv /opt/ensemblead \
 && /opt/ensemblead/bin/pip install --no-cache-dir --config-settings=cmake.define.ENSEMBLEAD_CUDA=ON ".[gpu]"

FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 python3 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home inspector
COPY --from=build /opt/ensemblead /opt/ensemblead
ENV PATH=/opt/ensemblead/bin:$PATH
USER inspector
WORKDIR /home/inspector
ENTRYPOINT ["ensemblead"]
CMD ["info"]
