package watch

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// info encodes an information record.
func info(typ byte, handle, name string) []byte {
	b := make([]byte, 20, 64)
	b[0] = typ
	binary.NativeEndian.PutUint32(b[12:], uint32(len(handle)))
	binary.NativeEndian.PutUint32(b[16:], 1)
	b = append(append(append(b, handle...), name...), 0)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	binary.NativeEndian.PutUint16(b[2:], uint16(len(b)))
	return b
}

// raw encodes an event.
func raw(mask uint64, pid int32, infos ...[]byte) []byte {
	b := make([]byte, 24)
	for _, i := range infos {
		b = append(b, i...)
	}
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	b[4] = unix.FANOTIFY_METADATA_VERSION
	binary.NativeEndian.PutUint16(b[6:], 24)
	binary.NativeEndian.PutUint64(b[8:], mask)
	binary.NativeEndian.PutUint32(b[20:], uint32(pid))
	return b
}

func decodeAll(b []byte) (out []event, err error) {
	err = decode(b, func(e event) { out = append(out, e) })
	return out, err
}

func TestDecode(t *testing.T) {
	d1, d2 := handle{1, "dir one!"}, handle{1, "dir two."}
	two := append(raw(unix.FAN_CREATE, 7, info(unix.FAN_EVENT_INFO_TYPE_DFID_NAME, d1.bytes, "a")),
		raw(unix.FAN_RENAME, 8, info(unix.FAN_EVENT_INFO_TYPE_OLD_DFID_NAME, d1.bytes, "a"), info(unix.FAN_EVENT_INFO_TYPE_NEW_DFID_NAME, d2.bytes, "b"))...)
	got, err := decodeAll(two)
	require.NoError(t, err)
	require.Equal(t, []event{
		{mask: unix.FAN_CREATE, pid: 7, dir: d1, name: "a"},
		{mask: unix.FAN_RENAME, pid: 8, dir: d2, name: "b", old: d1, was: "a"},
	}, got)

	got, err = decodeAll(raw(unix.FAN_Q_OVERFLOW, 0))
	require.NoError(t, err)
	require.Equal(t, []event{{mask: unix.FAN_Q_OVERFLOW}}, got)

	got, err = decodeAll(raw(unix.FAN_MODIFY, 1, info(unix.FAN_EVENT_INFO_TYPE_FID, d1.bytes, ""), info(unix.FAN_EVENT_INFO_TYPE_DFID_NAME, d1.bytes, "x")))
	require.NoError(t, err)
	require.Equal(t, []event{{mask: unix.FAN_MODIFY, pid: 1, dir: d1, name: "x"}}, got, "records of other types are passed over")

	for i := 1; i < len(two); i++ {
		if _, err := decodeAll(two[:i]); i != int(binary.NativeEndian.Uint32(two)) {
			require.Error(t, err, "cut after %d bytes", i)
		}
	}
}

// FuzzDecode: whatever comes, nothing is read beyond its end.
func FuzzDecode(f *testing.F) {
	f.Add(raw(unix.FAN_CREATE, 7, info(unix.FAN_EVENT_INFO_TYPE_DFID_NAME, "dir", "a")))
	f.Add(raw(unix.FAN_Q_OVERFLOW, 0))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		err := decode(b, func(e event) {
			n++
			if len(e.dir.bytes)+len(e.name)+len(e.old.bytes)+len(e.was) > len(b) {
				t.Fatal("more than there was")
			}
		})
		if err == nil && n > len(b)/24 {
			t.Fatalf("%d events in %d bytes", n, len(b))
		}
	})
}

func TestBelow(t *testing.T) {
	for _, tt := range []struct {
		root, path, want string
		in               bool
	}{
		{"/srv/x", "/srv/x", "", true}, {"/srv/x", "/srv/x/a/b", "a/b", true},
		{"/srv/x", "/srv/xy", "", false}, {"/srv/x", "/srv", "", false}, {"/", "/a", "a", true},
	} {
		got, in := below(tt.root, tt.path)
		require.Equal(t, tt.in, in, tt.path)
		if in {
			require.Equal(t, tt.want, got)
		}
	}
}

func TestParseStatus(t *testing.T) {
	var p Process
	parseStatus([]byte("Name:\tvi\nUmask:\t0022\nUid:\t1000\t1001\t1002\t1003\nGid:\t100\t101\t102\t103\nNSpgid:\t4711\nPeak:\t1\n"), &p)
	require.Equal(t, Process{Comm: "vi", UID: 1001, GID: 101, PGID: 4711}, p)
	require.Equal(t, Process{}, newProcesses().find(0))
	require.Equal(t, Process{PID: 1 << 30}, newProcesses().find(1<<30), "a process that is gone")
}
