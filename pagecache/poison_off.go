//go:build !race && !cagedebug

package pagecache

// poison fills freed buffers; see the debug build.
const poison = false
