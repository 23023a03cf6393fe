// Package bare runs a command on this machine as it is, and leaves nothing of it running.
package bare

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/test/host/internal/need"
	"github.com/gladsheim/gladsheim/test/host/internal/options"
	"github.com/gladsheim/gladsheim/test/host/internal/pack"
)

// programs are those that every host has.
var programs = []string{"bash", "ps", "curl", "jq", "ip", "nginx", "redis-server", "redis-cli", "psql", "postgres", "initdb"}

// plainUser runs the command with -user: one that every machine has and that owns nothing.
const plainUser = "nobody"

// Run runs the command in a fresh folder and returns its exit code.
func Run(ctx context.Context, opts options.Options) (int, error) {
	if os.Geteuid() != 0 && !opts.User {
		return 0, errors.New("it runs commands as root: be root, or say -user")
	}
	dir, err := os.MkdirTemp("", "gladsheim-host-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	// Also of this process: that is where programs are looked up.
	if err := os.Setenv("PATH", searchPath(filepath.Join(dir, "bin"))); err != nil {
		return 0, err
	}
	if err := need.Programs(programs...); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, opts.Timeout)
	defer cancel()
	// Servers that change their user must come in.
	if err := os.Chmod(dir, 0o755); err != nil {
		return 0, err
	}
	cmd, err := command(ctx, dir, opts)
	if err != nil {
		return 0, err
	}
	code, err := runAlone(cmd)
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	if err != nil {
		return 0, err
	}
	return code, fetch(cmd.Dir, opts.Out)
}

// command prepares the folder and the command in it.
func command(ctx context.Context, dir string, opts options.Options) (*exec.Cmd, error) {
	work, bin := filepath.Join(dir, "test"), filepath.Join(dir, "bin")
	if err := os.Mkdir(work, 0o755); err != nil {
		return nil, err
	}
	if opts.Bin != "" {
		// A copy, as in a machine: the tree may be built while the test runs, and may not be readable to all.
		if err := pack.Copy(opts.Bin, bin); err != nil {
			return nil, fmt.Errorf("-bin: %w", err)
		}
	}
	for _, pair := range opts.Copy {
		dest := pair.To
		if !filepath.IsAbs(dest) {
			dest = filepath.Join(work, dest)
		}
		if err := pack.Copy(pair.From, dest); err != nil {
			return nil, fmt.Errorf("-copy: %w", err)
		}
	}
	cmd := exec.CommandContext(ctx, opts.Args[0], opts.Args[1:]...)
	cmd.Dir = work
	cmd.Env = append(os.Environ(), "HOME=/root", "USER=root", "LOGNAME=root", "LANG=C.UTF-8")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if opts.Stdin || opts.TTY {
		cmd.Stdin = os.Stdin
	}
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: !opts.TTY, Pdeathsig: unix.SIGKILL}
	if opts.User {
		if err := becomePlain(cmd, dir); err != nil {
			return nil, err
		}
	}
	cmd.Env = append(cmd.Env, opts.Env...)
	return cmd, nil
}

// becomePlain makes the command and its folder a plain user's, unless we are one.
func becomePlain(cmd *exec.Cmd, dir string) error {
	name := plainUser
	if os.Geteuid() == 0 {
		account, err := user.Lookup(name)
		if err != nil {
			return err
		}
		uid, err := strconv.ParseUint(account.Uid, 10, 32)
		if err != nil {
			return err
		}
		gid, err := strconv.ParseUint(account.Gid, 10, 32)
		if err != nil {
			return err
		}
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		err = filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(path, int(uid), int(gid)))
		})
		if err != nil {
			return err
		}
	} else if account, err := user.Current(); err == nil {
		name = account.Username
	}
	cmd.Env = append(cmd.Env, "HOME="+cmd.Dir, "USER="+name, "LOGNAME="+name)
	return nil
}

// searchPath puts the tree's binaries before the rest, and PostgreSQL's after it.
func searchPath(bin string) string {
	path := []string{bin, os.Getenv("PATH"), "/usr/local/sbin", "/usr/sbin", "/sbin"}
	if postgres, err := filepath.Glob("/usr/lib/postgresql/*/bin"); err == nil {
		path = append(path, postgres...)
	}
	return strings.Join(path, ":")
}

// fetch copies out what was asked for.
func fetch(work string, out []options.Pair) error {
	var errs error
	for _, pair := range out {
		from := pair.From
		if !filepath.IsAbs(from) {
			from = filepath.Join(work, from)
		}
		if err := pack.Copy(from, pair.To); err != nil {
			errs = errors.Join(errs, fmt.Errorf("-out: %w", err))
		}
	}
	return errs
}
