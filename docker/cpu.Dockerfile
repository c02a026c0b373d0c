# ensemblead on CPUs. Build it from the root of a clone:
#   docker build -f docker/cpu.Dockerfile -t ensemblead:cpu .
#   docker run --rm -v "$PWD/photos:/photos:ro" -v "$PWD/out:/out" ensemblead:cpu predict /out/model /photos --out /out/found
FROM python:3.12-slim-bookworm AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN python -m venv /opt/ensemblead \
 && /opt/ensemblead/bin/pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu torch torchvision \
 && /opt/ensemblead/bin/pip install --no-cache-dir ".[cpu,openvino]"

FROM python:3.12-slim-bookworm
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home inspector
COPY --from=build /opt/ensemblead /opt/ensemblead
ENV PATH=/opt/ensemblead/bin:$PATH
USER inspector
WORKDIR /home/inspector
RUN ensemblead info
ENTRYPOINT ["ensemblead"]
CMD ["info"]
