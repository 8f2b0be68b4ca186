package fusefs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/status"
)

func TestErrnoOfEveryCode(t *testing.T) {
	require.Len(t, errnos, len(status.Codes()), "a code was added without its errno")
	for _, code := range status.Codes() {
		for name, err := range map[string]error{
			"bare":    code,
			"error":   status.New(code, "read", "notes.txt"),
			"wrapped": fmt.Errorf("page 7: %w", status.New(code, "read", "notes.txt")),
		} {
			got, _ := errnoOf(err)
			require.NotEqual(t, fuse.ENOSYS, got, "%s %v must not switch an operation off", name, code)
			if code == status.OK {
				continue
			}
			require.NotEqual(t, fuse.OK, got, "%s %v must not be success", name, code)
			require.Equal(t, fuse.Status(errnos[code]), got, "%s %v", name, code)
		}
	}
}

func TestErrnoOfOtherErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		err   error
		want  syscall.Errno
		known bool
	}{
		"nil":                {nil, 0, true},
		"unreachable server": {status.New(status.Unreachable, "dial", "h:7400"), syscall.ETIMEDOUT, true},
		"lost session":       {status.LostSession, syscall.EIO, true},
		"no space":           {status.Wrap(syscall.ENOSPC, "write", "x"), syscall.ENOSPC, true},
		"cancelled":          {context.Canceled, syscall.EINTR, true},
		"deadline":           {fmt.Errorf("read: %w", context.DeadlineExceeded), syscall.ETIMEDOUT, true},
		"os not exist":       {fmt.Errorf("x: %w", os.ErrNotExist), syscall.ENOENT, true},
		"ENOSYS below":       {syscall.ENOSYS, syscall.EOPNOTSUPP, true},
		"unknown":            {errors.New("flux capacitor"), syscall.EIO, false},
		"newer code":         {status.New(9999, "read", ""), syscall.EIO, false},
		"OK inside an error": {status.New(status.OK, "read", ""), syscall.EIO, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, known := errnoOf(tc.err)
			require.Equal(t, fuse.Status(tc.want), got)
			require.Equal(t, tc.known, known)
		})
	}
}

func TestUnforeseenErrorsAreLoggedOnce(t *testing.T) {
	var out bytes.Buffer
	l := errorLog{log: zerolog.New(&out)}
	for range 3 {
		require.Equal(t, fuse.EIO, l.status("read", errors.New("flux capacitor")))
	}
	require.Equal(t, fuse.ENOENT, l.status("lookup", status.NotFound))
	require.Equal(t, 1, strings.Count(out.String(), "\n"), out.String())
	for i := range 10 * maxUnknown {
		l.status("read", fmt.Errorf("unknown %d", i))
	}
	require.Equal(t, maxUnknown, strings.Count(out.String(), "\n"), "the memory of texts is bounded")
}
