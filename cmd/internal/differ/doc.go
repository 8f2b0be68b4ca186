// Package differ runs random programs of file-system calls on two directories
// and tells where these behave differently. It knows nothing of Cage: one
// directory is an ordinary file system, which is right, the other is a mount.
//
// A Program is made from a seed alone (Generate). Its steps are done one at a
// time, each by one of several processes of several users, first on the one
// side, then on the other; what each step returns and the trees at the end must
// be the same (Run). A program that shows a difference is cut down to the steps
// that matter (Shrink) and printed as text (Program.String), which Parse reads.
//
// The program that runs them must call Worker first thing in its main or
// TestMain: the processes are started from the same binary.
//
// What file systems may do differently is not compared, see outcome.go.
package differ
