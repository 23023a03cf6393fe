package auditor

import (
	"bufio"
	"errors"
	"os"
	"strconv"
	"strings"
)

// logLine is one line of the agent's log, as log/slog writes text: KEY=VALUE,
// quoted where it must be.
type logLine map[string]string

func (v *view) readLog() error {
	if v.host.AgentLog == "" {
		return errors.New("its log was not named")
	}
	f, err := os.Open(v.host.AgentLog)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewReader(f)
	for {
		text, err := lines.ReadString('\n')
		if err != nil { // a line that is not whole yet is none
			return nil
		}
		if line := parseLine(text); line["msg"] != "" {
			v.log = append(v.log, line)
		}
	}
}

func parseLine(text string) logLine {
	line := logLine{}
	for rest := strings.TrimSpace(text); rest != ""; rest = strings.TrimLeft(rest, " ") {
		key, after, found := strings.Cut(rest, "=")
		if !found || strings.ContainsAny(key, ` "`) {
			return line // no line of slog, but a traceback, say
		}
		value, tail := after, ""
		if quoted, err := strconv.QuotedPrefix(after); err == nil && after[0] == '"' {
			value, _ = strconv.Unquote(quoted)
			tail = after[len(quoted):]
		} else {
			value, tail, _ = strings.Cut(after, " ")
		}
		line[key], rest = value, tail
	}
	return line
}
