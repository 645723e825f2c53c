# Sourced by the scripts that check things: runs checks and tests, counts them, tells the end.
# shellcheck shell=bash

passed=0
failed=0
failures=()
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# One check: its output is shown only if it fails.
check() { # NAME COMMAND...
    local name=$1
    shift
    say "$name"
    if "$@" >"$log" 2>&1 </dev/null; then
        passed=$((passed + 1))
    else
        cat "$log"
        failed=$((failed + 1))
        failures+=("$name")
        say "FAILED: $name"
    fi
}

# A run of cargo test: the single tests are counted from the lines that each test program ends
# with, and a run that fails without a failed test (it does not compile) counts as one.
tests() { # NAME COMMAND...
    local name=$1 status=0 good bad
    shift
    say "$name"
    "$@" </dev/null 2>&1 | tee "$log" | progress || status=1
    read -r good bad < <(awk '/^test result:/ { good += $4; bad += $6 } END { print good + 0, bad + 0 }' "$log")
    if [ $status -ne 0 ] && [ "$bad" -eq 0 ]; then bad=1; fi
    passed=$((passed + good))
    failed=$((failed + bad))
    if [ "$bad" -gt 0 ]; then
        # Everything from the first sign of failure on; the names of passed tests help nobody.
        grep -v '^test .* \.\.\. ok$' "$log" || true
        failures+=("$name: $bad failed")
        say "FAILED: $name"
    fi
}

# A line per test program and per slow test keeps a long run from looking dead.
progress() {
    awk '/^ *(Running|Doc-tests) / || /^test result:/ || (/^test / && /FAILED/) { print "        " $0; fflush() }' >&2
}

# Tells what failed, and "N passed, N failed" as the last line; the exit status says whether any did.
finish() {
    local failure
    for failure in ${failures[@]+"${failures[@]}"}; do say "failed: $failure"; done
    say 'done'
    echo "$passed passed, $failed failed"
    [ "$failed" -eq 0 ]
}
