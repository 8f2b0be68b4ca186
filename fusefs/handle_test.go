package fusefs

import (
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/wire"
)

func TestAReleaseThatOvertakesARead(t *testing.T) {
	var hs handles[int]
	closed := 0
	n := hs.add(&handle[int]{it: 7, close: func(*handle[int]) { closed++ }})
	require.NotZero(t, n)
	h := hs.borrow(n)
	hs.release(n)
	require.Zero(t, closed, "the read still uses it")
	require.Nil(t, hs.borrow(n))
	h.give()
	require.Equal(t, 1, closed)
	hs.release(n)
	require.Equal(t, 1, closed)
}

func TestHandlesConcurrently(t *testing.T) {
	var hs handles[int]
	var closed atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 500 {
				n := hs.add(&handle[int]{close: func(*handle[int]) { closed.Add(1) }})
				wg.Go(func() {
					if h := hs.borrow(n); h != nil {
						h.give()
					}
				})
				hs.release(n)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 8*500, closed.Load())
	hs.add(&handle[int]{close: func(*handle[int]) { closed.Add(1) }})
	hs.releaseAll()
	require.EqualValues(t, 8*500+1, closed.Load())
	require.Zero(t, hs.len())
}

func TestOpenFlags(t *testing.T) {
	require.EqualValues(t, wire.OpenRead, openFlags(syscall.O_RDONLY|syscall.O_CLOEXEC))
	require.EqualValues(t, wire.OpenWrite, openFlags(syscall.O_WRONLY|syscall.O_APPEND))
	require.EqualValues(t, wire.OpenRead|wire.OpenWrite, openFlags(syscall.O_RDWR))
	require.Zero(t, openFlags(syscall.O_RDONLY|fmodeExec), "to execute needs no read permission")
}
