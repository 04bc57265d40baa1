#!/usr/bin/env bash
# The steps of action.yml: `install` puts ggufrope on the path, `judge` checks files, gates a plan
# and leaves reports. Inputs come in variables, and no shell reads them again as commands.
set -euo pipefail

reports=$RUNNER_TEMP/ggufrope-reports
code=0

install() {
  local extras=remote venv=$RUNNER_TEMP/ggufrope-venv bin
  [[ -z $INPUT_PLAN ]] || extras=remote,llama,report
  python -m venv "$venv"
  bin=$venv/bin
  [[ -d $bin ]] || bin=$venv/Scripts # Windows
  if [[ -n $INPUT_VERSION ]]; then
    "$bin/python" -m pip install --quiet "ggufrope[$extras]==$INPUT_VERSION"
  else
    "$bin/python" -m pip install --quiet "$GITHUB_ACTION_PATH[$extras]"
  fi
  echo "$bin" >>"$GITHUB_PATH"
}

# Of several exit codes the first that is not 0 counts.
keep() { ((code)) || code=$1; }

check() {
  local options=(--sarif "$reports/check.sarif" --junit "$reports/check.xml" --md "$reports/check.md")
  [[ -z $INPUT_CONFIG ]] || options+=(--config "$INPUT_CONFIG")
  [[ -z $INPUT_CARD ]] || options+=(--card "$INPUT_CARD")
  echo "sarif=$reports/check.sarif" >>"$GITHUB_OUTPUT"
  ggufrope check "${options[@]}" -- "$@" || keep $?
}

gate() {
  local options=(--out "$reports/run")
  [[ -z $INPUT_SHARD ]] || options+=(--shard "$INPUT_SHARD")
  ggufrope run "${options[@]}" -- "$INPUT_PLAN" || keep $?
  [[ ! -d $reports/run ]] || ggufrope report "$reports/run" --md "$reports/gate.md" \
    --junit "$reports/gate.xml" --html "$reports/gate.html" || keep $?
}

judge() {
  local files=() line
  while IFS= read -r line; do
    line=${line#"${line%%[![:space:]]*}"}
    line=${line%"${line##*[![:space:]]}"}
    [[ -z $line ]] || files+=("$line")
  done <<<"$INPUT_FILES"
  if ((${#files[@]} == 0)) && [[ -z $INPUT_PLAN ]]; then
    echo "::error::ggufrope: give files to check, or a plan" >&2
    exit 2
  fi
  mkdir -p "$reports"
  echo "reports=$reports" >>"$GITHUB_OUTPUT"
  ((${#files[@]} == 0)) || check "${files[@]}"
  [[ -z $INPUT_PLAN ]] || gate
  local summary
  for summary in "$reports"/*.md; do
    [[ ! -f $summary ]] || cat "$summary" >>"$GITHUB_STEP_SUMMARY"
  done
  exit "$code"
}

"$@"
