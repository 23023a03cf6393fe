package platform

import "path/filepath"

// SocketName is the socket of an agent in its run directory.
const SocketName = "gladsheim.sock"

// RunDir is where the agent of a user has its socket and what else a reboot may
// take: of root that of the system, else one of the XDG base directories.
func RunDir(uid int, getenv func(string) string) string {
	if uid == 0 {
		return "/run/gladsheim"
	}
	return UserDir(getenv, "XDG_RUNTIME_DIR", ".cache")
}

// UserDir is the directory of the agent of a plain user in the XDG base directory
// that a variable names, else in one below the user's home.
func UserDir(getenv func(string) string, variable, otherwise string) string {
	if dir := getenv(variable); filepath.IsAbs(dir) {
		return filepath.Join(dir, "gladsheim")
	}
	return filepath.Join(getenv("HOME"), otherwise, "gladsheim")
}
