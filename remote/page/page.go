// Package page is the geometry of pages: fixed-size aligned pieces of a file.
// Pure arithmetic on offsets; no I/O, no memory. It imports nothing of Cage.
package page

// Size is the bytes of a page: a power of two, 4 KiB to 4 MiB.
type Size int

// DefaultSize is what a cache begins with.
const DefaultSize Size = 128 << 10

// No is the number of a page in a file, from 0.
type No int64
