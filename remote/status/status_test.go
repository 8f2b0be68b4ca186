package status

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestEveryCodeHasItsText(t *testing.T) {
	seen := map[string]Code{}
	for _, c := range Codes() {
		text := c.String()
		require.NotEmpty(t, text, "code %d", uint16(c))
		require.False(t, strings.HasPrefix(text, "status "), "code %d has no text", uint16(c))
		require.NotContains(t, seen, text, "codes %d and %d have one text", uint16(c), uint16(seen[text]))
		require.Equal(t, text, c.Error())
		seen[text] = c
	}
	require.Len(t, texts, int(maxCode))
	require.Equal(t, "status 9999", Code(9999).String())
}

// The numbers are on the wire and in journals.
func TestNumbersStay(t *testing.T) {
	for c, want := range map[Code]int{OK: 0, Internal: 1, NotFound: 2, NoSpace: 10, Stale: 17, Timeout: 23, Again: 28,
		Version: 33, WrongKey: 36, LostSession: 38, NoMoment: 43} {
		require.EqualValues(t, want, c)
	}
}

func TestOf(t *testing.T) {
	ended, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	_, missing := os.Open(filepath.Join(t.TempDir(), "none"))
	for name, tc := range map[string]struct {
		err  error
		want Code
	}{
		"nil":                     {nil, OK},
		"bare code":               {Busy, Busy},
		"wrapped code":            {fmt.Errorf("x: %w", Busy), Busy},
		"error":                   {New(Stale, "read", "f"), Stale},
		"wrapped error":           {fmt.Errorf("x: %w", New(Stale, "read", "f")), Stale},
		"own code over its cause": {Newf(Damaged, "read", "f", "bad: %w", syscall.ENOENT), Damaged},
		"errno":                   {syscall.ENOSPC, NoSpace},
		"wrapped errno":           {fmt.Errorf("x: %w", syscall.EACCES), Access},
		"path error":              {missing, NotFound},
		"link error":              {&os.LinkError{Op: "rename", Err: syscall.EXDEV}, CrossDevice},
		"syscall error":           {os.NewSyscallError("fsync", syscall.EIO), IO},
		"unknown errno":           {syscall.EADV, IO},
		"refused connection":      {&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, Unreachable},
		"deadline":                {context.DeadlineExceeded, Timeout},
		"context at its end":      {ended.Err(), Timeout},
		"cancelled":               {fmt.Errorf("x: %w", context.Canceled), Interrupted},
		"connection's deadline":   {&net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}, Timeout},
		"not there":               {fs.ErrNotExist, NotFound},
		"joined":                  {errors.Join(errors.New("a"), Wrap(syscall.EROFS, "b", "")), ReadOnly},
		"foreign":                 {errors.New("what"), Internal},
		"end of file":             {io.ErrUnexpectedEOF, Internal},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, tc.want, Of(tc.err))
			if tc.err != nil {
				again := Wrap(tc.err, "outer", "object")
				require.Equal(t, tc.want, Of(again), "a wrapped error keeps its code")
				require.ErrorIs(t, again, tc.err)
			}
		})
	}
}

func TestIs(t *testing.T) {
	err := fmt.Errorf("mount: %w", New(WrongKey, "connect", "host"))
	require.ErrorIs(t, err, WrongKey)
	require.NotErrorIs(t, err, NotFound)

	inner := Newf(Unreachable, "dial", "host", "%w", syscall.ECONNREFUSED)
	outer := Newf(Timeout, "mount", "", "%w", inner)
	for _, target := range []error{Timeout, Unreachable, syscall.ECONNREFUSED} {
		require.ErrorIs(t, outer, target, "every cause in the chain is found")
	}
	require.Equal(t, Timeout, Of(outer), "the outermost code is the error's")
}

func TestTexts(t *testing.T) {
	for want, err := range map[string]error{
		"read a.txt: stale file number":          New(Stale, "read", "a.txt"),
		"read: stale file number":                New(Stale, "read", ""),
		"a.txt: stale file number":               New(Stale, "", "a.txt"),
		"stale file number":                      New(Stale, "", ""),
		"read a.txt: page 7: input/output error": Newf(IO, "read", "a.txt", "page %d: %w", 7, syscall.EIO),
		"save x: read a.txt: stale file number":  Wrap(New(Stale, "read", "a.txt"), "save", "x"),
		"open x: busy":                           Wrap(Busy, "open", "x"),
	} {
		require.EqualError(t, err, want)
	}
	require.NoError(t, Wrap(nil, "read", "x"))
}

func TestErrnoTable(t *testing.T) {
	for no, c := range fromErrno {
		require.NotEqual(t, OK, c, no)
		require.Less(t, c, maxCode, no)
		require.Equal(t, c, Of(&fs.PathError{Op: "open", Path: "x", Err: no}), "%v", no)
	}
}
