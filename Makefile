# Targets of Cage. `make` alone prints them.

STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.7.0
FUZZTIME ?= 30s
GO ?= go

help: ## print this
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' $(MAKEFILE_LIST) | expand -t 20

build: ## the commands, into bin/
	$(GO) build -o bin/ ./cmd/cagefs ./cmd/cageserverd ./cmd/cagejournal

# Most of these wait for disks and timers: more of them at a time than there are processors.
test: build ## all tests that a change must pass (under 5 minutes; needs root or fusermount3)
	$(GO) test -count=1 -parallel 6 ./...

race: ## the tests of all packages under the race detector, without those that drive binaries
	$(GO) test -count=1 -race $$($(GO) list ./... | grep -v '/cmd/internal/e2e$$')

fuzz: ## each fuzz target for FUZZTIME (30s)
	@set -e; for pkg in $$($(GO) list ./...); do \
		for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "$$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$pkg; \
		done; \
	done

lint: ## gofmt, go vet, staticcheck, and the directions of imports
	@out=$$(gofmt -l .); if [ -n "$$out" ]; then echo "not gofmt-ed: $$out"; exit 1; fi
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	$(GO) test -count=1 ./cmd/internal/deps

accept: programs ## the long runs: programs, big trees, crashes, cuts (an hour; needs root)
	CAGE_CRASH_RUNS=150 $(GO) test -count=1 -v -timeout 30m -run Crash ./journal
	CAGE_ACCEPT=1 $(GO) test -count=1 -v -timeout 30m -run 'Storm|Hostile|Nowhere' ./serverd ./remote
	CAGE_ACCEPT=1 $(GO) test -count=1 -v -timeout 3h -skip '^TestProgram[A-Z]' ./cmd/internal/e2e

programs: build ## real programs on a mount, in full (half an hour; needs root, and installs Debian packages)
	.ci/install git sqlite3 rsync postgresql fio stress-ng dbench
	CAGE_ACCEPT=1 $(GO) test -count=1 -v -timeout 2h -run '^TestProgram[A-Z]' ./cmd/internal/e2e

differential: build ## random programs on mounts and on ext4, compared; CAGE_DIFF_TIME (1h), CAGE_SEED, CAGE_DIFF_PROGRAM
	CAGE_DIFF_TIME=$${CAGE_DIFF_TIME:-1h} $(GO) test -count=1 -v -timeout 0 -run "$$([ "$$CAGE_DIFF_PROGRAM" ] && echo TestPrograms || echo TestDifferential)" ./cmd/internal/e2e

linear: build ## random operations on three mounts, in an order that explains all answers, and no stale ones; CAGE_LINEAR_TIME (1h), CAGE_SEED
	CAGE_LINEAR_TIME=$${CAGE_LINEAR_TIME:-1h} CAGE_STALE_ROUNDS=$${CAGE_STALE_ROUNDS:-100000} \
		$(GO) test -count=1 -v -timeout 0 -run 'TestLinearizable|TestStaleness' ./cmd/internal/e2e

torture: build ## three mounts that work while connections are cut and the server is killed; CAGE_TORTURE_TIME (30m), CAGE_SEED
	CAGE_TORTURE_TIME=$${CAGE_TORTURE_TIME:-30m} $(GO) test -count=1 -v -timeout 0 -run TestTorture ./cmd/internal/e2e

demo: build ## a server and a mount on this machine, step by step (under a minute)
	@bash cmd/internal/demo/demo.sh bin

sim: ## the lease protocol in virtual time: 2,000 seeds, and each rule broken (a minute)
	CAGE_SIM_SEEDS=$${CAGE_SIM_SEEDS:-2000} $(GO) test -count=1 -v -timeout 30m ./cmd/internal/sim

bench: ## the micro-benchmarks of all packages
	$(GO) test -run '^$$' -bench . -benchmem ./...

bench-memory: build ## memory of the daemons over a million files and 20 GiB (a quarter of an hour; 30 GB of disk)
	CAGE_ACCEPT=1 $(GO) test -count=1 -v -timeout 3h -run 'TestMemory$$' ./cmd/internal/e2e

bench-sharing: build ## two who work on the same files, in two mounts, in one, and in a directory without: CAGE_ROUNDS (3) times in turn
	@for i in $$(seq $${CAGE_ROUNDS:-3}); do for by in mounts mount directory; do echo "== $$by"; \
		out=$$(CAGE_SHARED_BY=$$by $(GO) test -count=1 -v -timeout 1h -run '^TestSharing' ./cmd/internal/e2e) || { echo "$$out"; exit 1; }; \
		echo "$$out" | grep -E 'a second|late|^---'; \
	done; done

clean: ## what the others left
	rm -rf bin

.PHONY: help build test race fuzz lint accept programs differential linear torture demo sim bench bench-memory bench-sharing clean
