package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestLocalTail: a program of the server appends to a file that several follow in a mount, reading, looking
// at its size through the descriptor, or by its name. Whatever the size was when they read, they see what was
// written, never the zeros that were behind the end before.
func TestLocalTail(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, x *shared) {
		const followers = 4
		log, err := os.OpenFile(filepath.Join(x.export, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		require.NoError(t, err)
		defer log.Close()
		path := filepath.Join(x.m, "log")
		sooner(t, "the file is there", func() bool { _, err := os.Stat(path); return err == nil })

		var written, torn atomic.Int64 // all of it, when the end is known; reads that were
		write := func(ctx context.Context) error {
			n := int64(0)
			for end := time.Now().Add(time.Duration(full(2, 20)) * time.Second); time.Now().Before(end) && ctx.Err() == nil; {
				line := append(slices.Repeat([]byte("x"), 50+int(n%97)), '\n')
				if _, err := log.Write(line); err != nil {
					return err
				}
				n += int64(len(line))
				time.Sleep(300 * time.Microsecond)
			}
			written.Store(n)
			return nil
		}
		follow := func(who int) func(ctx context.Context) error {
			fd := keepOpen(t, path, unix.O_RDONLY)
			return func(ctx context.Context) error {
				var st unix.Stat_t
				pos, buf := int64(0), make([]byte, 64<<10)
				for late := time.Now().Add(stuck); ctx.Err() == nil; {
					var err error
					switch who % 3 {
					case 1:
						err = unix.Fstat(fd, &st)
					case 2:
						err = unix.Stat(path, &st)
					}
					if err != nil {
						return err
					}
					n, err := unix.Pread(fd, buf, pos)
					if err != nil {
						return err
					}
					if bytes.IndexByte(buf[:n], 0) >= 0 { // the kernel had begun with the page from before when it was told the size
						torn.Add(1)
						if n, err = unix.Pread(fd, buf, pos); err != nil {
							return err
						}
					}
					if at := bytes.IndexByte(buf[:n], 0); at >= 0 {
						return fmt.Errorf("follower %d reads a zero at %d, of %d bytes from %d on", who, pos+int64(at), n, pos)
					}
					pos += int64(n)
					switch all := written.Load(); {
					case all != 0 && pos == all:
						return nil
					case all == 0:
						late = time.Now().Add(stuck)
					case time.Now().After(late):
						return fmt.Errorf("follower %d has read %d of %d bytes", who, pos, all)
					}
				}
				return ctx.Err()
			}
		}
		all := []func(context.Context) error{write}
		for who := range followers {
			all = append(all, follow(who))
		}
		err = together(all...)
		t.Logf("%d torn reads", torn.Load())
		require.NoError(t, err)
	})
}
