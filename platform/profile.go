package platform

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Profile is what a platform wants of an agent that nobody configured further.
type Profile struct {
	Name        string
	MaxServices int           // most services that run at once, 0 for no cap
	Memory      service.Quota // service.MemoryMax of services that set none
	CPU         service.Quota // service.CPUMax likewise
	Pids        service.Quota // service.PidsMax likewise: a fork bomb is to end in its own service

	// Charge of the battery, in percent, below which services are stopped and
	// monitoring is reduced; 0 for never.
	StopServicesBelow, ReduceMonitoringBelow int

	place place
}

// place says where a platform keeps its configuration.
type place uint8

const (
	inHome    place = iota // ~/.edda/NAME
	inAppData              // the user's application data directory
	inEtc                  // /etc/edda/NAME
)

const defaultPids = 512

// profiles are the platforms that Gladsheim runs on.
var profiles = []Profile{
	profile("midgard", 15, 512, 25, inHome),                   // desktop
	saving(profile("alfheim", 5, 256, 25, inAppData), 15, 30), // mobile
	profile("asgard", 25, 2048, 75, inEtc),                    // home server
	profile("ragnarok", 8, 512, 30, inHome),                   // terminal
}

func profile(name string, services int, memoryMiB, cpuPercent uint64, at place) Profile {
	return Profile{
		Name: name, MaxServices: services,
		Memory: service.Of(memoryMiB << 20), CPU: service.Of(cpuPercent * service.UsecPerPercent), Pids: service.Of(defaultPids),
		place: at,
	}
}

// saving makes a profile save the battery. The others do not unless they are
// configured to: nobody expects the services of a desktop or a server to be stopped.
func saving(p Profile, stopBelow, reduceBelow int) Profile {
	p.StopServicesBelow, p.ReduceMonitoringBelow = stopBelow, reduceBelow
	return p
}

// Auto is the name that leaves the choice of a platform to Choose.
const Auto = "auto"

// Names lists what Choose accepts.
func Names() []string {
	names := []string{Auto}
	for _, p := range profiles {
		names = append(names, p.Name)
	}
	return names
}

// Choose finds the profile by its name. Auto takes asgard's for root, since an
// agent of the system serves the whole host, and midgard's for anybody else.
// The error is of Kind Invalid.
func Choose(name string, f Facts) (Profile, error) {
	if name == Auto {
		guess := "midgard"
		if f.UID == 0 {
			guess = "asgard"
		}
		p, err := Choose(guess, f)
		// The cap is a promise of a platform, made to the one who set the
		// platform up. A guess must not turn services of a host away.
		p.MaxServices = 0
		return p, err
	}
	i := slices.IndexFunc(profiles, func(p Profile) bool { return p.Name == name })
	switch {
	case i >= 0:
		return profiles[i], nil
	case name == "jotunheim":
		return Profile{}, refuse("Gladsheim does not run on Jotunheim: its small devices have no services to manage")
	}
	return Profile{}, refuse("%.40q is not a platform; it is one of %s", name, strings.Join(Names(), ", "))
}

func refuse(format string, args ...any) error {
	return &service.Error{Op: "choose the platform", Kind: service.Invalid, Err: fmt.Errorf(format, args...)}
}

// ConfigFile is where the platform keeps the agent's configuration, by the
// environment of this process; "" where it has no home directory to look in.
func (p Profile) ConfigFile() string {
	if p.place == inEtc {
		return filepath.Join("/etc/edda", p.Name, "gladsheim.json")
	}
	if data := os.Getenv("XDG_DATA_HOME"); p.place == inAppData && filepath.IsAbs(data) {
		return filepath.Join(data, p.Name, "gladsheim.json")
	}
	home := os.Getenv("HOME")
	if home == "" {
		if u, err := user.Current(); err == nil {
			home = u.HomeDir
		}
	}
	switch {
	case !filepath.IsAbs(home):
		return ""
	case p.place == inAppData:
		return filepath.Join(home, ".local/share", p.Name, "gladsheim.json")
	}
	return filepath.Join(home, ".edda", p.Name, "gladsheim.json")
}
