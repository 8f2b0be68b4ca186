//go:build race || cagedebug

package pagecache

// poison fills freed buffers, so that whoever still reads one is noticed.
const poison = true
