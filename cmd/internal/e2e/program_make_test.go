package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestProgramMake builds a C program of many files with make, four at a time, whose
// rules say by themselves what depends on what. Built again nothing is done, and
// after a header is touched just what includes it.
func TestProgramMake(t *testing.T) {
	w := newWorkshop(t, map[string]string{"make": "make", "cc": "gcc"})
	n := full(16, 60)
	var built string
	w.compare("make", func(dir string) {
		dir = filepath.Join(dir, "project")
		cProject(t, dir, n)
		make := func() []string {
			t.Helper()
			return lines(w.in(dir, "make", "-s", "-j4"))
		}
		require.Len(t, make(), n+1, "each file is compiled")
		built = w.in(dir, "./program")
		require.Empty(t, make(), "nothing is to be done")
		w.in(dir, "touch", "part3.h")
		require.ElementsMatch(t, []string{"cc part2.c", "cc part3.c", "cc main.c"}, make())
	})
	require.Equal(t, fmt.Sprintln(n*(n-1)/2), built)
	project := filepath.Join(w.ground, "project")
	if accept {
		for i := range n {
			obj := fmt.Sprintf("part%d.o", i)
			w.in(w.dir, "cmp", filepath.Join(project, obj), filepath.Join(w.local, "project", obj))
		}
	}
	whole := func() {
		t.Helper()
		require.Equal(t, built, w.in(project, "./program"))
	}
	w.in(project, "make", "-s", "clean")
	_, err := os.Stat(filepath.Join(project, "program"))
	require.ErrorIs(t, err, unix.ENOENT)
	require.Len(t, lines(w.in(project, "make", "-s", "-j4")), n+1)
	whole()
	w.finish(whole)
}

// cProject writes a program of n parts into a new directory. Each part includes
// its own header and that of the next.
func cProject(t *testing.T, dir string, n int) {
	t.Helper()
	require.NoError(t, os.Mkdir(dir, 0o755))
	write := func(name, text string) {
		t.Helper()
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	var uses, calls strings.Builder
	for i := range n {
		write(fmt.Sprintf("part%d.h", i), fmt.Sprintf("int part%d(void);\n", i))
		write(fmt.Sprintf("part%d.c", i), fmt.Sprintf("#include \"part%d.h\"\n#include \"part%d.h\"\nint part%d(void) { return %d; }\n", i, (i+1)%n, i, i))
		fmt.Fprintf(&uses, "#include \"part%d.h\"\n", i)
		fmt.Fprintf(&calls, "sum += part%d();\n", i)
	}
	write("main.c", fmt.Sprintf("#include <stdio.h>\n%sint main(void) { int sum = 0;\n%sprintf(\"%%d\\n\", sum); return 0; }\n", &uses, &calls))
	write("Makefile", `objs := $(patsubst %.c,%.o,$(wildcard *.c))
program: $(objs)
	@cc -o $@ $^
%.o: %.c
	@echo cc $<
	@cc -O1 -MMD -MP -c -o $@ $<
clean:
	rm -f program *.o *.d
-include $(objs:.o=.d)
`)
}
