#!/usr/bin/env bash
# What action.yml runs: checks files, gates a plan, and leaves reports. Inputs come in variables and
# are never part of a command line that a shell reads again.
set -euo pipefail

if [[ -z ${INPUT_FILES//[[:space:]]/} && -z $INPUT_PLAN ]]; then
  echo "::error::ggufrope: give files to check, or a plan" >&2
  exit 2
fi

reports=$RUNNER_TEMP/ggufrope-reports
mkdir -p "$reports"
echo "reports=$reports" >>"$GITHUB_OUTPUT"

extras=remote
[[ -z $INPUT_PLAN ]] || extras=remote,llama,report
python -m venv "$RUNNER_TEMP/ggufrope-venv"
bin=$RUNNER_TEMP/ggufrope-venv/bin
[[ -d $bin ]] || bin=$RUNNER_TEMP/ggufrope-venv/Scripts # Windows
"$bin/python" -m pip install --quiet "${INPUT_PACKAGE:-$GITHUB_ACTION_PATH}[$extras]"

code=0
# The worst of two exit codes is the first that is not 0.
keep() { ((code)) || code=$1; }

files=()
while IFS= read -r line; do
  line=${line#"${line%%[![:space:]]*}"}
  line=${line%"${line##*[![:space:]]}"}
  [[ -z $line ]] || files+=("$line")
done <<<"$INPUT_FILES"
if ((${#files[@]})); then
  echo "sarif=$reports/check.sarif" >>"$GITHUB_OUTPUT"
  options=(--sarif "$reports/check.sarif" --junit "$reports/check.xml" --md "$reports/check.md")
  [[ -z $INPUT_CONFIG ]] || options+=(--config "$INPUT_CONFIG")
  [[ -z $INPUT_CARD ]] || options+=(--card "$INPUT_CARD")
  "$bin/ggufrope" check "${options[@]}" -- "${files[@]}" || keep $?
  [[ ! -f $reports/check.md ]] || cat "$reports/check.md" >>"$GITHUB_STEP_SUMMARY"
fi

if [[ -n $INPUT_PLAN ]]; then
  options=(--out "$reports/run")
  [[ -z $INPUT_SHARD ]] || options+=(--shard "$INPUT_SHARD")
  "$bin/ggufrope" run "${options[@]}" -- "$INPUT_PLAN" || keep $?
  "$bin/ggufrope" report "$reports/run" \
    --md "$reports/gate.md" --junit "$reports/gate.xml" --html "$reports/gate.html" || keep $?
  [[ ! -f $reports/gate.md ]] || cat "$reports/gate.md" >>"$GITHUB_STEP_SUMMARY"
fi
exit "$code"
