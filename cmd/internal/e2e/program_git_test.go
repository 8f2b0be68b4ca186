package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestProgramGit clones a repository into the mount and works with it: commits,
// branches, merges, work trees, gc. What git finds there afterwards is what it
// finds in a clone of it elsewhere.
func TestProgramGit(t *testing.T) {
	w := newWorkshop(t, map[string]string{"git": "git"})
	origin := w.mkdir("origin.git")
	env := []string{"HOME=" + w.dir, "GIT_CONFIG_NOSYSTEM=1"}
	for _, who := range []string{"AUTHOR", "COMMITTER"} {
		env = append(env, "GIT_"+who+"_NAME=N", "GIT_"+who+"_EMAIL=n@example.org")
	}
	git := func(dir string, args ...string) string {
		t.Helper()
		return strings.TrimSpace(w.ask(task{args: append([]string{"git"}, args...), dir: dir, env: env}))
	}
	const past = 400
	git(origin, "init", "-q", "--bare", "-b", "main")
	w.ask(task{args: []string{"git", "fast-import", "--quiet"}, dir: origin, env: env, stdin: gitHistory(past)})
	n := full(4, 150)

	w.compare("git", func(dir string) {
		repo, wt := filepath.Join(dir, "repo"), filepath.Join(dir, "wt")
		commit := func(name string, i int) {
			t.Helper()
			sub := filepath.Join(repo, name, fmt.Sprint(i%10))
			require.NoError(t, os.MkdirAll(sub, 0o755))
			require.NoError(t, os.WriteFile(filepath.Join(sub, fmt.Sprint(i)), []byte(fmt.Sprintln(name, i)), 0o644))
			require.NoError(t, os.WriteFile(filepath.Join(repo, "last-"+name), []byte(fmt.Sprintln(name, i)), 0o644))
			git(repo, "add", "-A")
			git(repo, "commit", "-q", "-m", fmt.Sprintf("%s %d", name, i))
		}
		git(w.dir, "clone", "-q", "--no-hardlinks", origin, repo)
		for i := range n {
			commit("here", i)
		}
		git(repo, "checkout", "-q", "-b", "side", "main~50")
		for i := range n {
			commit("there", i)
		}
		git(repo, "worktree", "add", "-q", wt, "main")
		require.Empty(t, git(wt, "status", "--porcelain"))
		require.FileExists(t, filepath.Join(wt, "here", "0", "0"))
		git(repo, "worktree", "remove", wt)
		require.NoDirExists(t, wt)
		git(repo, "merge", "-q", "-m", "together", "main")
		git(repo, "tag", "-a", "-m", "done", "v1")
		git(repo, "gc", "-q", "--prune=now")
		require.Empty(t, git(repo, "status", "--porcelain"))
	})

	repo := filepath.Join(w.ground, "repo")
	whole := func() {
		t.Helper()
		require.Empty(t, git(repo, "fsck", "--full", "--strict", "--no-progress"))
		require.Empty(t, git(repo, "status", "--porcelain"))
		require.Equal(t, fmt.Sprint(past+2*n+1), git(repo, "rev-list", "--count", "--all"))
	}
	whole()
	copied := w.path("copy")
	git(w.dir, "clone", "-q", "--no-local", "-b", "side", repo, copied)
	require.Equal(t, git(repo, "rev-parse", "HEAD^{tree}"), git(copied, "rev-parse", "HEAD^{tree}"))
	w.in(w.dir, "diff", "-r", "--exclude=.git", repo, copied)
	w.finish(whole)
}

// gitHistory is a history for git fast-import: n commits on main that change a
// hundred files.
func gitHistory(n int) *strings.Reader {
	var b strings.Builder
	for i := range n {
		text := strings.Repeat(fmt.Sprintf("line %d\n", i), i%40+1)
		fmt.Fprintf(&b, "commit refs/heads/main\ncommitter N <n@example.org> %d +0000\ndata 5\nmore\n\n", 1_600_000_000+i*60)
		fmt.Fprintf(&b, "M 100644 inline dir%d/file%d\ndata %d\n%s\n", i%7, i%100, len(text), text)
	}
	return strings.NewReader(b.String())
}
