#!/bin/sh
# build.sh DIR: builds spire-server and spire-agent of the release in go.mod into
# DIR/VERSION and prints that folder. What is there is not built again.
set -eu
version=$(sed -n 's/^require github.com\/spiffe\/spire \(v[^ ]*\).*/\1/p' "$(dirname "$0")/go.mod")
mkdir -p "$1/$version"
out=$(cd "$1/$version" && pwd)
echo "$out"
[ -x "$out/spire-server" ] && [ -x "$out/spire-agent" ] && exit 0

cd "$(dirname "$0")"
source=$(go mod download -json "github.com/spiffe/spire@$version" | sed -n 's/^	"Dir": "\(.*\)",$/\1/p')
# In SPIRE's own module its go.sum vouches for every dependency, also for one whose
# sum the public database does not have. Its data store needs a C compiler.
cd "$source"
CGO_ENABLED=1 go build -mod=readonly -trimpath -ldflags '-s -w' -o "$out/" ./cmd/spire-server ./cmd/spire-agent
