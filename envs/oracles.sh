#!/usr/bin/env bash
# Puts other implementations into the environment given (`make oracles`), for the tests that compare ours with them.
# Of the official suffix tree only its C++ extension and the cache beside it: the whole package wants vLLM and its torch.
# kvpress without what it asks for: it wants transformers below 5.3, and of the rest its rules import only these.
set -euo pipefail
venv=$1
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
pip=("$venv/bin/python" -m pip --quiet --disable-pip-version-check)

"${pip[@]}" install --no-deps kvpress==0.5.5 cachetools==5.5.2 fire==0.7.1 termcolor==3.3.0

command -v c++ >/dev/null || { echo "the official suffix tree needs a C++20 compiler: install g++"; exit 1; }
"${pip[@]}" install --target "$build/tools" nanobind==2.9.2 cmake==4.4.5 ninja==1.13.2
"${pip[@]}" download --no-deps --no-build-isolation --no-binary :all: --dest "$build" arctic-inference==0.3.0
(cd "$build" && sha256sum --quiet --check <<<"7f22e3e1b1071c6061c0d6951be17c0fb50b08d06d6e543144c8f52faba60a36  arctic_inference-0.3.0.tar.gz" && tar xzf arctic_inference-0.3.0.tar.gz)
source=$build/arctic_inference-0.3.0
export PYTHONPATH=$build/tools PATH=$build/tools/bin:$PATH
cmake -G Ninja -S "$source/csrc/suffix_decoding" -B "$build/out" -DCMAKE_BUILD_TYPE=Release \
  -DPython_EXECUTABLE="$(realpath -s "$venv")/bin/python" >/dev/null
cmake --build "$build/out" >/dev/null
package=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/arctic_inference
mkdir -p "$package"
cp "$source/arctic_inference/__init__.py" "$package"
cp -r "$source/arctic_inference/suffix_decoding" "$package"
cp "$build"/out/_C*.so "$package/suffix_decoding"
