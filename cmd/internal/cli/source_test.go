package cli

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseSource(t *testing.T) {
	tests := []struct {
		in   string
		want Source
		addr string
		text string
	}{
		{"host:/data", Source{"", "host", "7400", "data", ""}, "host:7400", "host:/data"},
		{"host:/data/", Source{"", "host", "7400", "data", ""}, "host:7400", "host:/data"},
		{"host:7500:/data/a/b", Source{"", "host", "7500", "data", "a/b"}, "host:7500", "host:/data/a/b"},
		{"a=host:/data", Source{"a", "host", "7400", "data", ""}, "host:7400", "host:/data"},
		{"127.0.0.1:/d@-5m", Source{"", "127.0.0.1", "7400", "d@-5m", ""}, "127.0.0.1:7400", "127.0.0.1:/d@-5m"},
		{"h:/d/x=y:/z", Source{"", "h", "7400", "d", "x=y:/z"}, "h:7400", "h:/d/x=y:/z"},
		{"h:/d/a@14:02", Source{"", "h", "7400", "d", "a@14:02"}, "h:7400", "h:/d/a@14:02"},
		{"h:/d//a/../../b", Source{"", "h", "7400", "d", "b"}, "h:7400", "h:/d/b"},
		{"[::1]:/data", Source{"", "::1", "7400", "data", ""}, "[::1]:7400", "[::1]:/data"},
		{"[fe80::1]:7500:/data/s", Source{"", "fe80::1", "7500", "data", "s"}, "[fe80::1]:7500", "[fe80::1]:/data/s"},
	}
	for _, tt := range tests {
		t.Run(tt.in, func(t *testing.T) {
			got, err := ParseSource(tt.in)
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
			require.Equal(t, tt.addr, got.Addr())
			require.Equal(t, tt.text, got.String())
			require.True(t, IsSource(tt.in))
			again, err := ParseSource(got.Typed())
			require.NoError(t, err, got.Typed())
			got.Name = ""
			require.Equal(t, got, again)
		})
	}
	for _, bad := range []string{
		"", "data", "/data", "host:data", "host:", ":/data", "host:/", "host://", "host:0:/d", "host:65536:/d", "host:x:/d",
		"::1:/d", "[::1:/d", "[::1]7400:/d", "[host]:/d", "a b:/d", "host:/..", "user@host:/d",
	} {
		t.Run("bad "+bad, func(t *testing.T) {
			_, err := ParseSource(bad)
			require.Error(t, err)
			require.Equal(t, ExitUsage, ExitOf(err))
		})
	}
}

func TestIsSource(t *testing.T) {
	for s, want := range map[string]bool{
		"h:/d": true, "h:7400:/d/x": true, "./h:/d": false, "/mnt/a:/b": false, "dir/x": false, "file": false, "14:02": false, "h:d/x": false,
	} {
		require.Equal(t, want, IsSource(s), s)
	}
}
