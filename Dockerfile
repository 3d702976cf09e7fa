# The image of vital_exp. Without a command it runs the demo.
#
#   docker build -t vital_exp .
#   mkdir -p outputs && docker run --rm --user "$(id -u)" -v "$PWD/outputs:/work/outputs" vital_exp
#   docker run --rm --user "$(id -u)" --gpus all -v "$PWD:/work" vital_exp \
#       vital-visualize model=resnet50 references.root=photos target.index=207
#
# TORCH is what pip installs first; PIP_EXTRA_ARGS are further arguments of pip. The default is the registry's PyTorch, which
# runs on CUDA and on the CPU. For a smaller image without CUDA, name the package index of PyTorch's CPU builds:
#
#   docker build --build-arg PIP_EXTRA_ARGS="--index-url=<index of the CPU builds>" -t vital_exp:cpu .
#   docker build --build-arg TORCH="torch==2.9.* torchvision==0.24.*" -t vital_exp .
ARG PYTHON_VERSION=3.12
FROM python:${PYTHON_VERSION}-slim

ARG TORCH="torch torchvision"
ARG PIP_EXTRA_ARGS=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1

# PyTorch is by far the largest layer. It comes before the sources, so that changed sources do not download it again.
RUN pip install ${PIP_EXTRA_ARGS} ${TORCH}

COPY . /src
RUN pip install /src && rm -rf /src

# The image runs as the user vital, not as root. Any user that --user names can write these folders. PyTorch reads USER.
RUN useradd --create-home --uid 1000 vital && mkdir /work && chmod 1777 /work /home/vital
USER vital
ENV USER=vital HOME=/home/vital
WORKDIR /work
CMD ["vital-visualize"]
