package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gladsheim/gladsheim/platform"
	"github.com/gladsheim/gladsheim/test/auditor"
)

// settle is how long a finding has to stay: a host at work is between two states
// all the time.
const settle = 5 * time.Second

func (a *app) fsckCommand() *cobra.Command {
	var state, log string
	c := &cobra.Command{
		Use:   "fsck",
		Short: "Hold this host against the invariants, beside the agent; exit with 1 if something is wrong",
		Long: `Hold this host against the invariants of docs/architecture.md: read the processes,
the cgroups and the agent's records, ask the agent at --host if it is there, and
compare. Nothing is changed. One line tells each way in which they disagree for
five seconds, and a second what to do where that is known; what could not be looked at is told on stderr. To be run as root,
or as the user of the agent.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			socket, ok := strings.CutPrefix(a.host, "unix://")
			if !ok || !filepath.IsAbs(socket) {
				return usage(errors.New("cannot look at another host: --host is to be unix:///PATH, a socket in the run directory of an agent of this one"))
			}
			state, err := filepath.Abs(state)
			if err != nil {
				return err
			}
			r, err := auditor.Audit(cmd.Context(), auditor.Host{
				State: state, Run: filepath.Dir(socket), Socket: socket, AgentLog: log,
				Cgroups: platform.Detect().CgroupRoot, Proc: "/proc",
			}, auditor.Expectation{}, settle)
			if err != nil {
				if errors.Is(err, fs.ErrNotExist) && !cmd.Flags().Changed("state-dir") {
					err = fmt.Errorf("%w; name the directory of the agent at %s: --state-dir (with make run: .run/state)", err, a.host)
				}
				return fmt.Errorf("cannot look at this host: %w", err)
			}
			return a.showReport(r)
		},
	}
	c.Flags().StringVar(&state, "state-dir", a.defaultStateDir(), "the agent's `directory` of what is wanted")
	c.Flags().StringVar(&log, "agent-log", "", "`file` that the agent's own log goes to; without it the log is not checked")
	return c
}

// defaultStateDir is that of an agent of this user.
func (a *app) defaultStateDir() string {
	if a.uid == 0 {
		return "/var/lib/gladsheim"
	}
	return platform.UserDir(a.getenv, "XDG_STATE_HOME", ".local/state")
}

func (a *app) showReport(r auditor.Report) error {
	for _, what := range r.Unchecked {
		fmt.Fprintf(a.err, "not checked: %s\n", oneLine(what))
	}
	for _, what := range r.Notes {
		fmt.Fprintf(a.err, "note: %s\n", plain(what))
	}
	if a.machine() {
		r.Findings, r.Unchecked = append([]auditor.Finding{}, r.Findings...), append([]string{}, r.Unchecked...) // [] and not null
		r.Notes = append([]string{}, r.Notes...)
		if err := a.encode(r); err != nil {
			return err
		}
	} else {
		for _, f := range r.Findings {
			fmt.Fprintln(a.out, oneLine(f.String()))
			if hint := f.Hint(); hint != "" {
				fmt.Fprintf(a.out, "    %s\n", plain(hint))
			}
		}
		if _, err := fmt.Fprintln(a.out, plural(len(r.Findings), "finding")); err != nil {
			return err
		}
	}
	if len(r.Findings) > 0 {
		return worstOf(exitFailure)
	}
	return nil
}
