package cli

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/status"
)

func TestReadConfig(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cage.conf")
	const text = "# a comment\n\n cache-size = 1MiB\nexport=a=/srv/a b\nexport = c = /d\n"
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	for _, tt := range []struct {
		name string
		args []string
		size Size
		list []string
	}{
		{"file alone", nil, 1 << 20, []string{"a=/srv/a b", "c = /d"}},
		{"the command line wins", []string{"--cache-size", "2K", "--export", "x"}, 2 << 10, []string{"x"}},
		{"and leaves the rest", []string{"--cache-size", "2K"}, 2 << 10, []string{"a=/srv/a b", "c = /d"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := New("do", "", "")
			var size Size
			c.Flags.Var(&size, "cache-size", "")
			list := c.Flags.StringArray("export", nil, "")
			require.NoError(t, c.Flags.Parse(tt.args))
			require.NoError(t, ReadConfig(c.Flags, file))
			require.Equal(t, tt.size, size)
			require.Equal(t, tt.list, *list)
		})
	}
	for text, want := range map[string]string{
		"\nnonsense":                     ":2: not NAME = VALUE",
		"nonsense = 1":                   `:1: no setting named "nonsense"`,
		"config = x":                     `:1: no setting named "config"`,
		"cache-size = much":              ":1: --cache-size much: no size",
		"cache-size = 1K\ncache-size=2K": ":2: cache-size is set twice",
	} {
		c := New("do", "", "")
		var size Size
		c.Flags.Var(&size, "cache-size", "")
		c.Flags.String("config", "", "")
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		err := ReadConfig(c.Flags, file)
		require.Equal(t, status.Usage, status.Of(err), "%s", text)
		require.ErrorContains(t, err, want)
	}
	require.Equal(t, status.NotFound, status.Of(ReadConfig(New("do", "", "").Flags, file+".none")))
}
