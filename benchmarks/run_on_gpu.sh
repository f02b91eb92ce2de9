#!/usr/bin/env bash
# The book's long experiments, in the order of their value, on a GPU that is at hand for minutes at a time.
#
#   bash benchmarks/run_on_gpu.sh --fetch WHEELS        with a network: fetch what such a machine may lack
#   bash benchmarks/run_on_gpu.sh --output OUT [...]    there: install it, run what is missing, pack the records
#
# Options of a run: --wheels FOLDER (default .whl, if it is there), --data FOLDER or ARCHIVE (of MNIST/, or of CIFAR-10
# as images; may be repeated), --given FILE.tar (records of an earlier visit; may be repeated), --seconds N (all in all;
# default 540), --only NAME (of a job; may be repeated), --list, --rehearse (every job with tiny settings, on any
# machine, in a quarter of an hour on two cores; its rehearsal.tar is not for the project).
#
# A finished run is packed within a minute and never trained again. An unfinished one goes on from its checkpoint in
# _build/gpu when the script runs again on the same machine; a checkpoint of VGG (180 MB) is too large to take along.
# The commit that is recorded is what HDLIB_COMMIT says, or else that of the folder. The machine needs
# Python 3.12 with torch 2.11 or later, torchvision, pandas, pyarrow, scikit-learn, seaborn, typer, psutil and tqdm, and
# no network, and pytest with hypothesis for the tests that need a GPU. What comes back lies in OUT: at most eight files
# below 16 MB, records*.tar to be unpacked into the project's folder, logs.tar.gz, and a table of what ran.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

# What is fetched: papermill, jupytext and ipykernel with all that running a notebook needs, pydantic and prodigyopt, in
# the versions that are pinned. Completion and debugging (jedi, parso, debugpy), half of the weight, stay behind.
packages="papermill jupytext ipykernel nbclient nbformat jupyter-client jupyter-core traitlets ipython
ipython-pygments-lexers matplotlib-inline pexpect ptyprocess prompt-toolkit wcwidth stack-data executing
asttokens pure-eval tornado pyzmq nest-asyncio2 comm fastjsonschema jsonschema entrypoints
jsonschema-specifications referencing rpds-py tenacity platformdirs mdit-py-plugins pydantic pydantic-core
annotated-types typing-inspection typing-extensions prodigyopt"

if [ "${1:-}" = --fetch ]; then
    folder=${2:?name a folder: --fetch FOLDER}
    pinned=()
    for name in $packages; do
        line=$(grep -iE "^${name//[-_]/[-_]}==" requirements.txt | head -1 | sed 's/[ ;\\].*//') || true
        if [ -n "$line" ]; then pinned+=("$line"); else echo "not pinned, so not fetched: $name"; fi
    done
    platforms=()
    for glibc in 2_34 2_31 2_28 2_27 2_24 2_17; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
    "$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        "${platforms[@]}" --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d "$folder" "${pinned[@]}"
    du -sh "$folder"
    exit
fi

wheels=.whl asked=
arguments=()
while [ $# -gt 0 ]; do
    case $1 in
        --wheels) wheels=${2:?name a folder: --wheels FOLDER}; asked=$wheels; shift 2 ;;
        *) arguments+=("$1"); shift ;;
    esac
done
if [ -n "$asked" ] && ! compgen -G "$asked/*.whl" >/dev/null; then
    echo "--wheels is '$asked', where there are no .whl files: name the folder that --fetch made." >&2
    exit 2
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
if compgen -G "$wheels/*.whl" >/dev/null; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl
    export PYTHONPATH=$PYTHONPATH:$site
fi
"$python" benchmarks/gpu_queue.py ${arguments[@]+"${arguments[@]}"}
