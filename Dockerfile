# Small-Bench NLP with all requirements of training, for NVIDIA GPUs from the V100 on; other
# arguments build it for CPUs. See docs/docker.md.
#
#   docker build --tag smallbench --build-arg UNHASHED_TORCH=yes .
#   docker build --tag smallbench:cpu --build-arg BASE_IMAGE=debian:bookworm-slim \
#     --build-arg TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu --build-arg TORCH=cpu .
#
# BuildKit of Docker 20.10 is enough (DOCKER_BUILDKIT=1 there). The secrets apt_conf, pip_conf and
# ca_certificates configure access to packages and are not stored in a layer.

# pip's cache is a mount, so it is in no layer either.
# hadolint global ignore=DL3042

# Debian or Ubuntu with python3 3.11 or newer (Ubuntu 22.04 has 3.10). torch's wheel includes CUDA's
# libraries except the runtime, which NVIDIA's "base" images have. CUDA 12.6 is the last with
# kernels for the V100. By digest, since a tag may change.
ARG BASE_IMAGE=nvidia/cuda:12.6.3-base-ubuntu24.04@sha256:c87e78933f4c16e3272123bf2f75537306596d0fbaa395a29696a22786e5ee0e

FROM ${BASE_IMAGE} AS base
# libgomp1: DeepSpeed's optimizer on the CPU.
# hadolint ignore=DL3008
RUN --mount=type=secret,id=apt_conf \
    --mount=type=secret,id=ca_certificates \
    --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
    export APT_CONFIG=/run/secrets/apt_conf \
    && apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libgomp1 python3 tini \
    && rm -rf /var/log/apt /var/log/dpkg.log /var/log/alternatives.log /var/cache/debconf/*-old
RUN python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
        f"BASE_IMAGE has Python {sys.version.split()[0]}, not 3.11 or newer; Debian 12 and Ubuntu 24.04 do")' \
    && python3 -c 'import platform, sys; sys.exit(platform.machine() != "x86_64" and \
        f"this image is built for x86_64 only, not for {platform.machine()}: docker build --platform=linux/amd64")' \
    && groupadd --gid 10001 smallbench \
    && useradd --uid 10001 --gid 10001 --home-dir /scratch --no-create-home --shell /usr/sbin/nologin smallbench \
    && install --directory --owner=10001 --group=10001 /scratch

# Python packages in /opt/smallbench. Compilers and installers stay in this stage.
FROM base AS packages
# hadolint ignore=DL3008
RUN --mount=type=secret,id=apt_conf \
    --mount=type=secret,id=ca_certificates \
    --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
    export APT_CONFIG=/run/secrets/apt_conf \
    && apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-dev python3-pip python3-venv
ENV PIP_CACHE_DIR=/var/cache/pip \
    PIP_CONFIG_FILE=/run/secrets/pip_conf \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_PYTHON=/opt/smallbench/bin/python \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY docker/packages.lock docker/
RUN --mount=type=secret,id=pip_conf \
    --mount=type=secret,id=ca_certificates \
    --mount=type=cache,target=/var/cache/pip \
    PIP_PYTHON='' python3 -m venv --without-pip /opt/smallbench \
    && python3 -m pip install --require-hashes --no-deps --only-binary=:all: -r docker/packages.lock

# cuda or cpu: the lock that torch is installed from.
ARG TORCH=cuda
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cu126
# yes: allow a lock of torch without hashes, trusting the index.
ARG UNHASHED_TORCH=no
COPY docker/torch-${TORCH}.lock docker/install-torch docker/
RUN --mount=type=secret,id=pip_conf \
    --mount=type=secret,id=ca_certificates \
    --mount=type=cache,target=/var/cache/pip \
    docker/install-torch "docker/torch-${TORCH}.lock" "${UNHASHED_TORCH}" \
        --only-binary=:all: --extra-index-url "${TORCH_INDEX_URL}"

# DeepSpeed's ops for CPUs, compiled now: the image has no compiler.
COPY docker/deepspeed.lock docker/portable-g++ docker/
RUN --mount=type=secret,id=pip_conf \
    --mount=type=secret,id=ca_certificates \
    --mount=type=cache,target=/var/cache/pip \
    export PATH="$PATH:/opt/smallbench/bin" CC=/build/docker/portable-g++ CXX=/build/docker/portable-g++ \
        LDFLAGS=-s DS_ACCELERATOR=cpu DS_BUILD_CPU_ADAM=1 DS_BUILD_SHM_COMM=1 DS_ENABLE_NINJA=1 \
    && python3 -m pip install --require-hashes --no-deps --no-build-isolation --use-pep517 \
        -r docker/deepspeed.lock

# Remove files that are not used at run time: tests, headers, and static libraries.
RUN find /opt/smallbench -type d -name tests -prune -exec rm -rf '{}' + \
    && find /opt/smallbench -name '*.a' -delete \
    && find /opt/smallbench/lib/python3*/site-packages/torch/bin -type f ! -name torch_shm_manager -delete \
    && rm -rf /opt/smallbench/lib/python3*/site-packages/torch/include \
        /opt/smallbench/lib/python3*/site-packages/torch/share \
        /opt/smallbench/lib/python3*/site-packages/torch/test

# The Python packages as a CycloneDX file. The program that writes it stays in this stage.
FROM packages AS sbom
COPY docker/sbom.lock docker/
RUN --mount=type=secret,id=pip_conf \
    --mount=type=secret,id=ca_certificates \
    --mount=type=cache,target=/var/cache/pip \
    PIP_PYTHON='' python3 -m venv --without-pip /opt/sbom \
    && PIP_PYTHON=/opt/sbom/bin/python python3 -m pip install --require-hashes --no-deps \
        --only-binary=:all: -r docker/sbom.lock
COPY pyproject.toml ./
RUN /opt/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
        --spec-version 1.6 --output-format JSON --output-file /sbom.cdx.json /opt/smallbench/bin/python

FROM packages AS application
COPY pyproject.toml README.md LICENSE ./
COPY benchmarks benchmarks
COPY jobs jobs
COPY k8s k8s
# A page of the leaderboard's site, which the package links to.
COPY docs/submitting.md docs/
COPY smallbench smallbench
RUN python3 -m pip install --no-deps --no-build-isolation --no-index --no-cache-dir --prefix=/application . \
    && cp -r benchmarks "$(dirname "$(find /application -type d -path '*-packages/smallbench' -prune)")/"

FROM base
COPY docker/healthy /usr/local/bin/
COPY --from=packages /opt/smallbench /opt/smallbench
COPY --from=sbom /sbom.cdx.json /usr/share/doc/smallbench/
# All files are written to /scratch; the rest may be read-only. USER gives any --user the name that
# PyTorch looks up.
ENV PATH=/opt/smallbench/bin:$PATH \
    USER=smallbench \
    HOME=/scratch \
    TMPDIR=/scratch \
    HF_HOME=/scratch/.cache/huggingface \
    TRITON_CACHE_DIR=/scratch/.cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/scratch/.cache/torchinductor \
    TORCH_EXTENSIONS_DIR=/scratch/.cache/torch_extensions \
    WANDB_DIR=/scratch
VOLUME /scratch
WORKDIR /scratch
USER 10001:10001
HEALTHCHECK --interval=1m --timeout=10s --start-period=15m CMD ["healthy"]
ENTRYPOINT ["/usr/bin/tini", "--", "smallbench"]
CMD ["--help"]

# Last, since they change with each commit.
COPY --from=application /application /opt/smallbench
ARG VERSION=0.1.0
ARG COMMIT=
ARG CREATED=
ARG SOURCE=
ENV SOURCE_COMMIT=${COMMIT}
LABEL org.opencontainers.image.title="Small-Bench NLP" \
      org.opencontainers.image.description="Pretrain small language encoders on one GPU, fine-tune them on GLUE" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}"
