# Two commands matter: `make run` and `make test`. The rest is what they are made of.
GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)

.PHONY: build run test soak check bench generate clean

# The linker sets the version; go's own look at the repository would fail for root
# in a checkout of somebody else.
build: ## bin/gladsheimd and bin/gladsheim, static
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/ ./cmd/gladsheimd ./cmd/gladsheim

run: build ## an agent in the foreground, with the sample services of examples/services
	@tools/run

test: ## every floor on every host
	$(GO) run ./test/floors

soak: ## every host test on every host it can run on, and at length: a thousand starts and stops, for one
	$(GO) run ./test/floors -soak -timeout 6h

check: ## what needs no host: formatting, vet, the unit floor
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	$(GO) test ./...

bench: ## what a user waits for, measured
	$(GO) test -run '^$$' -bench . -benchmem ./...

generate: ## protocol code, schemas and golden files
	tools/proto generate
	$(GO) test ./agent/service ./agent/config -update

clean:
	rm -rf bin .run .cover
