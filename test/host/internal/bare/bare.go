// Package bare runs a command on this machine as it is, and leaves nothing of it running.
package bare
