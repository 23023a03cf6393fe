package service

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// CheckType is a way of asking a service how it is.
type CheckType uint8

// The check types.
const (
	CheckProcess  CheckType = iota // the main process lives and is no zombie
	CheckHTTP                      // GET URL answers as it is to
	CheckGRPC                      // grpc.health.v1 at Address answers SERVING
	CheckTCP                       // Address accepts a connection
	CheckExec                      // the program Exec, run beside the service, ends well
	CheckLog                       // a line of its output matches Pattern; of readiness only
	CheckNotify                    // it says so (sd_notify(3)); of readiness only
	CheckWatchdog                  // it says WATCHDOG=1 in every Interval (sd_notify(3)); of health only
	numCheckTypes
)

var checkTypeNames = [numCheckTypes]string{"process", "http", "grpc", "tcp", "exec", "log", "notify", "watchdog"}

func (c CheckType) String() string { return checkTypeNames[c] }

// Check is a readiness or health check.
type Check struct {
	Type    CheckType
	URL     string        // http
	Status  []StatusRange // http: of answers that are well; none: 200
	Body    string        // http: RE2 that the first 64 KiB of the answer match
	Address string        // grpc, tcp: host:port
	Service string        // grpc: the name asked for, "" for the whole server
	TLS     *TLS          // grpc, and http with an https URL; nil: as the host trusts, and grpc in plain text
	Remote  bool          // http, grpc, tcp: may ask other hosts
	Exec    []string      // exec: absolute path and arguments
	Pattern string        // ready, log: RE2 that a line matches

	Settle           time.Duration // ready, process: how long it has to have run
	Interval         time.Duration // health: from one check to the next, give or take a tenth
	Timeout          time.Duration // health: of one check; ready: of the whole start
	Threshold        int           // health: consecutive failures that make it unhealthy
	SuccessThreshold int           // health: consecutive successes that make it healthy
	StartPeriod      time.Duration // health: in which failures do not count until it was healthy once
}

// StatusRange is a range of HTTP status codes, both ends included. Those below 200 come
// before an answer (RFC 9110, 15.2), and are no part of it.
type StatusRange struct{ Low, High int }

// ParseStatusRange reads "200" or "200-299".
func ParseStatusRange(text string) (StatusRange, error) {
	first, last, ranged := strings.Cut(text, "-")
	if !ranged {
		last = first
	}
	low, err := strconv.ParseUint(first, 10, 16)
	high, err2 := strconv.ParseUint(last, 10, 16)
	r := StatusRange{int(low), int(high)}
	if err != nil || err2 != nil || r.check() != nil {
		return StatusRange{}, fmt.Errorf("%.40q is no status of an answer, 200 to 599, nor a range such as 200-299", text)
	}
	return r, nil
}

func (r StatusRange) check() error {
	if r.Low < 200 || r.High > 599 || r.Low > r.High {
		return fmt.Errorf("%v is no range of the status codes of answers, which are 200 to 599", r)
	}
	return nil
}

func (r StatusRange) String() string {
	if r.Low == r.High {
		return strconv.Itoa(r.Low)
	}
	return fmt.Sprintf("%d-%d", r.Low, r.High)
}

// TLS says how a check tells that it talks to the right one.
type TLS struct {
	CA         string // file of the certificates to trust (PEM), absolute; "": as the host trusts
	ServerName string // that the certificate is to be for; "": the host that is asked
	Insecure   bool   // whoever answers is believed
}

// Accepts tells whether an answer with that status is well.
func (c Check) Accepts(status int) bool {
	if len(c.Status) == 0 {
		return status == 200
	}
	for _, r := range c.Status {
		if r.Low <= status && status <= r.High {
			return true
		}
	}
	return false
}

// Target is what the check asks, for people: without the password in a URL.
func (c Check) Target() string {
	switch c.Type {
	case CheckHTTP:
		if u, err := url.Parse(c.URL); err == nil && u.User != nil {
			return u.Redacted()
		}
		return c.URL
	case CheckGRPC, CheckTCP:
		return c.Address
	case CheckExec:
		return strings.Join(c.Exec, " ")
	case CheckLog:
		return c.Pattern
	}
	return ""
}

const (
	maxPattern = 1 << 10
	maxStatus  = 16
)

func (s *Spec) validateReadiness(faults *faultList) {
	s.Ready.validate("ready", faults)
	faults.duration("ready.timeout", s.Ready.Timeout, time.Millisecond, 24*time.Hour)
	faults.duration("ready.settle", s.Ready.Settle, 0, 24*time.Hour)
	switch r := s.Ready; {
	case r.Settle > 0 && r.Type != CheckProcess:
		faults.add("ready.settle", "belongs to type %s; the type here is %s", CheckProcess, r.Type)
	case r.Settle > 0 && r.Settle >= r.Timeout:
		faults.add("ready.settle", "%v is not below ready.timeout, %v: no start would succeed", r.Settle, r.Timeout)
	case r.Type == CheckWatchdog:
		faults.add("ready.type", "%s tells that a service is well, not that it is ready", r.Type)
	case r.Type == CheckLog && s.Log == LogNull:
		faults.add("ready.type", "log looks at the output, and that is not kept (\"log\": \"null\")")
	}
}

func (s *Spec) validateHealth(faults *faultList) {
	s.Health.validate("health", faults)
	if s.Health.Type == CheckLog || s.Health.Type == CheckNotify {
		faults.add("health.type", "%s tells that a service is ready, not that it is well", s.Health.Type)
	}
	faults.duration("health.interval", s.Health.Interval, 100*time.Millisecond, 24*time.Hour)
	faults.duration("health.timeout", s.Health.Timeout, 10*time.Millisecond, time.Hour)
	faults.number("health.threshold", s.Health.Threshold, 1, 1000)
	faults.number("health.success_threshold", s.Health.SuccessThreshold, 1, 1000)
	faults.duration("health.start_period", s.Health.StartPeriod, 0, 24*time.Hour)
}

func (c Check) validate(field string, faults *faultList) {
	switch c.Type {
	case CheckHTTP:
		u, err := url.Parse(c.URL)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			faults.add(field+".url", "%q is not an http or https address", c.URL)
			break
		}
		c.validateHost(field+".url", u.Hostname(), faults)
		if c.TLS != nil && u.Scheme != "https" {
			faults.add(field+".tls", "is for an https url; this is %s", c.URL)
		}
		for _, r := range c.Status {
			faults.check(field+".status", r.check())
		}
		if len(c.Status) > maxStatus {
			faults.add(field+".status", "has %d entries; at most %d are allowed", len(c.Status), maxStatus)
		}
		if c.Body != "" {
			faults.pattern(field+".body", c.Body)
		}
	case CheckGRPC, CheckTCP:
		host, port, err := net.SplitHostPort(c.Address)
		if err != nil || host == "" || port == "" {
			faults.add(field+".address", "%q is not host:port", c.Address)
			break
		}
		c.validateHost(field+".address", host, faults)
	case CheckExec:
		faults.program(field+".exec", c.Exec)
	case CheckLog:
		if c.Pattern == "" {
			faults.add(field+".pattern", "is required by type %s", c.Type)
		} else {
			faults.pattern(field+".pattern", c.Pattern)
		}
	}
	if c.TLS != nil && c.TLS.CA != "" && !filepath.IsAbs(c.TLS.CA) {
		faults.add(field+".tls.ca", "%q is not an absolute path", c.TLS.CA)
	}
}

// validateHost refuses another host, where that is known: a name is looked up at each
// check.
func (c Check) validateHost(field, host string, faults *faultList) {
	if ip, err := netip.ParseAddr(host); err == nil && !ip.Unmap().IsLoopback() && !c.Remote {
		faults.add(field, "%s is not on this host; a check asks others only with \"remote\": true beside it", host)
	}
}

func (f *faultList) pattern(field, pattern string) {
	if len(pattern) > maxPattern {
		f.add(field, "has %d bytes; at most %d are allowed", len(pattern), maxPattern)
	} else if _, err := regexp.Compile(pattern); err != nil {
		f.add(field, "%v; it is to be in the syntax of RE2 (https://golang.org/s/re2syntax)", err)
	}
}

// Probe is one check of an incarnation, and what it said.
type Probe struct {
	At      time.Time // when it began
	Took    time.Duration
	Failed  bool
	Status  HealthStatus // after it
	Message string
}
