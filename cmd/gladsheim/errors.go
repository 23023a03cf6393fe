package main

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/api/client"
)

// complain says on stderr what went wrong and, where that is known, what to do.
func (a *app) complain(err error) {
	if f, ok := errors.AsType[*failure](err); ok {
		if err = f.err; err == nil {
			return
		}
	}
	message, faults := client.Message(err), client.Faults(err)
	if e, ok := errors.AsType[*service.Error](err); ok {
		message, faults = e.Error(), e.Faults
	}
	switch {
	case a.client != nil && client.Unreachable(err):
		message = a.unreachable()
	case client.KindOf(err) == service.Timeout && client.ReasonOf(err) == "":
		message = "cannot wait any longer: there was no answer in time"
	}
	if len(faults) > 0 {
		message = strings.TrimSuffix(before(message, faults[0].Message), ": ")
	}
	fmt.Fprintf(a.err, "gladsheim: %s\n", oneLine(message))
	for _, f := range faults {
		fmt.Fprintf(a.err, "  %s\n", plain(f.String()))
	}
	if lines := client.LastLines(err); len(lines) > 0 {
		fmt.Fprintln(a.err, "  its last lines:")
		for _, line := range lines {
			fmt.Fprintf(a.err, "    %s\n", plain(line))
		}
	}
	if outlook := client.Outlook(err); outlook != "" {
		fmt.Fprintf(a.err, "  %s\n", plain(outlook))
	}
	if h := a.hint(err); h != "" {
		fmt.Fprintf(a.err, "  %s\n", plain(h))
	}
}

// before is what a message says before it tells its faults one by one.
func before(message, fault string) string {
	head, _, found := strings.Cut(message, fault)
	if !found {
		return message
	}
	// Cut the place and field of the fault as well: they go up to the first
	// ": " after "cannot OP".
	if i := strings.Index(head, ": "); i >= 0 {
		return head[:i]
	}
	return head
}

func (a *app) unreachable() string {
	why := "nothing answers"
	if dialed := a.client.DialError(); dialed != nil {
		why = dialed.Error()
	}
	return fmt.Sprintf("cannot reach the agent at %s: %s", a.client.Address(), why)
}

const joinGroup = "be root, or join the group gladsheim: sudo usermod -aG gladsheim $USER, then log in again"

// code is exitCode that also knows how the dial went: a socket that the kernel
// refuses to the caller is no missing agent.
func (a *app) code(err error) int {
	if a.client != nil && client.Unreachable(err) && errors.Is(a.client.DialError(), fs.ErrPermission) {
		return exitDenied
	}
	return exitCode(err)
}

// hints say what to do about errors of a kind; %s is the service.
var hints = map[service.Kind]string{
	service.NotFound:       "see: gladsheim list",
	service.Exists:         "to replace it: gladsheim register --replace -f FILE",
	service.AlreadyRunning: "to start it anew: gladsheim restart %s",
	service.NotRunning:     "to start it: gladsheim start %s",
	service.Unenforceable:  "see what this host can enforce: gladsheim doctor; to run without: \"best_effort\": true in the definition",
	service.Denied:         joinGroup,
	service.Unlaunchable:   "see: gladsheim status %s",
}

// hintsByReason go before hints.
var hintsByReason = map[service.Reason]string{
	service.ReasonStartupTimeout:   "see what it wrote: gladsheim logs %s; \"ready\" in its definition says what is waited for, and how long",
	service.ReasonNoHistory:        "what is remembered begins with \"usage_history\": true in its definition; to look now: gladsheim usage %s --watch",
	service.ReasonHookFailed:       "all that is kept of what it wrote: gladsheim history %s --crashes, then --crash RUN",
	service.ReasonReloadFailed:     "what is run, and how long it may take: gladsheim definition %s",
	service.ReasonJobFailed:        "see what it wrote: gladsheim logs %s",
	service.ReasonDependencyFailed: "see how those stand that it requires: gladsheim deps %s",
	service.ReasonExitedEarly:      "see what it wrote: gladsheim logs %s",
	service.ReasonStopTimeout:      "to end it at once: gladsheim kill %s",
}

// hint is what to do about err, "" when there is nothing to say.
func (a *app) hint(err error) string {
	if a.client != nil && client.Unreachable(err) {
		if errors.Is(a.client.DialError(), fs.ErrPermission) {
			return joinGroup
		}
		return "start it, or restart it if it runs (services run on): systemctl restart gladsheimd, or gladsheimd in the foreground; elsewhere: --host or GLADSHEIM_HOST"
	}
	kind, name := client.KindOf(err), client.ServiceOf(err)
	text, ok := hintsByReason[client.ReasonOf(err)]
	if !ok {
		text = hints[kind]
	}
	switch {
	case kind == service.Timeout && !ok:
		return strings.TrimSpace("what was asked for may happen still; see: gladsheim status " + name)
	case strings.Contains(text, "%s") && name == "":
		return ""
	case strings.Contains(text, "%s"):
		return fmt.Sprintf(text, name)
	}
	return text
}
