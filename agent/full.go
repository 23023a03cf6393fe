package agent

import (
	"fmt"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/skirnir"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/logfile"
)

// watchLogs hears of logs that can not be written, whose services asked for more than
// the error of their own write (log_full).
func (a *Agent) watchLogs() {
	for _, b := range a.cfg.Backends {
		if t, ok := b.(backends.LogTeller); ok {
			t.WatchLogs(a.logTrouble)
		}
	}
}

// logTrouble takes that the log of a service can not be written, or can be again.
func (a *Agent) logTrouble(t service.LogTrouble) {
	reason, detail := logStory(t)
	a.registry.Revise(t.Service, func(s *service.Status) skirnir.News {
		known := s.LogTrouble
		same := known.Incarnation == t.Incarnation && known.Began.Equal(t.Began)
		switch {
		case t.Lasts():
			s.LogTrouble = t
			if same {
				return skirnir.News{Silent: true}
			}
		case same:
			s.LogTrouble = service.LogTrouble{}
		}
		a.cfg.Log.Warn("log of a service", "service", t.Service, "incarnation", t.Incarnation, "event", reason, "detail", detail)
		return skirnir.News{Kind: service.NoticeState, Reason: reason, Detail: detail}
	})
}

// logStory is the event that a trouble is, and what it says.
func logStory(t service.LogTrouble) (reason, detail string) {
	of := fmt.Sprintf("the log of incarnation %d", t.Incarnation)
	after := fmt.Sprintf(" after %v", t.Ended.Sub(t.Began).Round(time.Millisecond))
	switch {
	case t.Lasts() && t.Policy == service.LogFullBlock:
		return "log_disk_full", of + " can not be written: " + t.Why + "; the service waits until it can"
	case t.Lasts():
		return "log_disk_full", of + " can not be written: " + t.Why + "; what the service writes is dropped and counted until it can"
	case t.Lost:
		return "log_lost", of + " is written by nobody any more, since the shim has ended: what it held, and what the service writes from now on, is lost"
	case t.Policy == service.LogFullBlock:
		return "log_disk_recovered", of + " is written again" + after + "; nothing is missing"
	}
	return "log_disk_recovered", of + fmt.Sprintf(" is written again%s; %d bytes in %d lines are missing, and it says where", after, t.Bytes, t.Lines)
}

// fullLogs tells the doctor that nothing can be written into a log directory, which
// services with log_full fail keep to themselves.
func (a *Agent) fullLogs() []service.Finding {
	full, err := a.cfg.Logs.Full()
	switch {
	case err != nil:
		return []service.Finding{{
			Level: service.SeverityWarning, Title: "cannot tell whether there is room for logs", Detail: err.Error(), Fix: "See to the log directory.",
		}}
	case full:
		return []service.Finding{{
			Level: service.SeverityProblem, Title: "no room is left in " + a.cfg.LogDir,
			Detail: "A service that writes into a file there gets an error (ENOSPC), and its output is lost, unless its log_full says otherwise. Root may have a reserve.",
			Fix:    "Make room.",
		}}
	}
	return nil
}

// logFindings tells the doctor of a service whose log is not as it should be.
func (a *Agent) logFindings(s *service.Status) (findings []service.Finding) {
	if t := s.LogTrouble; t.Lasts() {
		f := service.Finding{
			Level: service.SeverityProblem, Title: fmt.Sprintf("the log of %s can not be written: %s", s.Name, t.Why),
			Detail: fmt.Sprintf("Since %s, what it writes is dropped and counted.", t.Began.Format(time.DateTime)),
			Fix:    fmt.Sprintf("Make room for %s; the rest goes by itself.", a.logPath(s.Name)),
		}
		if t.Policy == service.LogFullBlock {
			f.Detail = fmt.Sprintf("Since %s, it waits when it writes.", t.Began.Format(time.DateTime))
		}
		findings = append(findings, f)
	}
	if pid := s.PID(); pid != 0 && s.Spec != nil && s.Spec.LogFull != service.LogFullFail && logfile.Unread(pid) {
		findings = append(findings, service.Finding{
			Level: service.SeverityProblem, Title: fmt.Sprintf("%s writes into a log that nobody takes any more", s.Name),
			Detail: "The shim that did was killed since it was started. It runs on, and what it writes is lost.", Fix: "Restart it.",
		})
	}
	return findings
}
