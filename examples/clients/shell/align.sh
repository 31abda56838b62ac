#!/usr/bin/env bash
# An alignment with JSON and reflection alone: no stubs, no proto files. Needs `buf` and `jq`.
#
# Environment: UNMASK_ADDRESS, and UNMASK_TOKEN and UNMASK_TLS_CA (a file) where the server wants
# them.
set -euo pipefail

address=${UNMASK_ADDRESS:-localhost:50051}
models=${UNMASK_MODELS:-examples/models} # where the server finds them
question='Tom has 12 plums. First he finds 8, then he sells 9. How many plums does he have now?'
prefix='first, 12 + 8 =' # what the student has written when the token comes that we ask about

proto=$(dirname "$0")/../../../proto # only to decode the details of errors
scratch=$(mktemp -d) # for nobody else to read
trap 'rm -rf "$scratch"' EXIT
error=$scratch/error

curl=(buf curl --protocol grpc --timeout 120s --log-format json) # 120 s: the deadline of a call
if [ -n "${UNMASK_TLS_CA:-}" ]; then
  url=https://$address
  curl+=(--cacert "$UNMASK_TLS_CA")
  if [ -n "${UNMASK_TOKEN:-}" ]; then
    echo "authorization: Bearer $UNMASK_TOKEN" >"$scratch/headers" # no list of processes shows it
    curl+=(--header "@$scratch/headers" --reflect-header '*')
  fi
else
  url=http://$address
  curl+=(--http2-prior-knowledge)
fi

# explain: what `buf curl` said of an error, its details (google.rpc.*) decoded.
explain() {
  jq -r '"\(.code | ascii_upcase): \(.message)"' "$error" 2>/dev/null || cat "$error"
  jq -r '.details[]? | "\(.type) \(.value)"' "$error" 2>/dev/null | while read -r type value; do
    while ((${#value} % 4)); do value+='='; done # base64 comes without its padding
    base64 -d <<<"$value" |
      buf convert "$proto" --type "$type" --from -#format=binpb --to -#format=json |
      jq -r --arg type "$type" '
        if $type == "google.rpc.ErrorInfo" then "  reason \(.reason)"
        elif $type == "google.rpc.BadRequest" then
          .fieldViolations[] | "  field \(.field): \(.description)"
        elif $type == "google.rpc.RetryInfo" then "  try again in \(.retryDelay)"
        elif $type == "google.rpc.ResourceInfo" then
          "  there is no \(.resourceType) \(.resourceName)"
        else empty end'
  done
}

# call SERVICE/METHOD JSON: prints the answers as JSON. What goes wrong ends the script, explained.
call() {
  if ! "${curl[@]}" --data "$2" "$url/unmask.v1.$1" 2>"$error"; then
    explain >&2
    return 1
  fi
}

# A student, a teacher and a question. Doing it again finds what is there.
call CatalogService/RegisterPolicy "$(jq -n --arg model "$models/student" '
  {name: "student", $model, sampling: {temperature: 0.7}, maxNewTokens: 80}')" >/dev/null
call CatalogService/RegisterTeacher "$(jq -n --arg model "$models/teacher-strong" '
  {name: "strong", $model, policies: ["student"]}')" >/dev/null
call CatalogService/RegisterQuestions "$(jq -n --arg question "$question" '
  {questions: [{name: "plums", fields: {$question, answer: "11"}}], verifier: "hash_answer"}')" |
  jq -r '.results[] | select(.error) | "question \(.index): \(.error.message)" | halt_error'

# The token that comes after a prefix.
node=$(jq -n --arg text "$prefix" '{prefix: {policy: "student", question: "plums", $text}}')

# 400 rollouts for that token, watched. The requestId makes a second run find the first one's growth.
growth=$(call GrowthService/StartGrowth "$(jq -n --argjson node "$node" '
  {requestId: "five-minutes-shell", targets: [{$node}], teachers: ["strong"],
   budget: {rollouts: 400}}')" | jq -r '.growth.id')
call GrowthService/WatchGrowth "$(jq -n --arg growth "$growth" '{$growth}')" | jq -r '.growth |
  "growing: \(.rolloutsSampled // 0) of \(.rolloutsPlanned // 0) rollouts",
  if .error then "the growth failed: \(.error)" | halt_error else empty end'

# What the rollouts say of the teacher. A cosine is absent where there is nothing to score; the status
# says why.
call DiagnosisService/GetAlignment "$(jq -n --argjson node "$node" '{$node, teachers: ["strong"]}')" |
  jq -r --arg prefix "$prefix" 'def digits: . * 1000 | round / 1000; .alignments[0] |
    "after \($prefix | @json): \(.status)",
    (.cosine | select(.) |
      "strong: cosine \(.median | digits) [\(.low | digits), \(.high | digits)]")'

# What a mistake looks like.
echo -n "refused, as it should be: "
if call CatalogService/RegisterPolicy "$(jq -n --arg model "$models/student" '
  {$model, sampling: {temperature: -1}}')" 2>&1; then
  exit 1
fi
