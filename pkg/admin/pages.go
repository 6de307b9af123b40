package admin

import (
	"encoding/json"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"runtime"
)

// New returns the admin server: index, /config_dump, /logging, /debug/pprof/,
// /quitquitquit, and what is added.
func New(cfg Config) *Server {
	s := newServer(cfg)
	s.local = true
	s.mux.HandleFunc("GET /{$}", s.index)
	s.Handle("/config_dump", "everything that the program knows, as JSON", http.HandlerFunc(s.configDump))
	s.Handle("/debug/pprof/", "profiles of the Go runtime", http.HandlerFunc(pprof.Index))
	s.mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	s.mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	s.mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	s.mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	s.mux.HandleFunc("/debug/pprof/heap/profiling", heapProfiling)
	if cfg.Levels != nil {
		s.Handle("/logging", "log levels; POST ?level=info,access=debug changes them, ?reset restores them", LevelPage{cfg.Levels, s.cfg.Log})
	}
	if cfg.Quit != nil {
		s.Handle("/quitquitquit", "POST ends the program", http.HandlerFunc(s.quit))
	}
	return s
}

// heapProfiling is where upstream turns heap profiling on and off. Go's is always
// on, sampled.
func heapProfiling(w http.ResponseWriter, _ *http.Request) {
	fmt.Fprintf(w, "heap profiling is always on, one sample in %d bytes; GET /debug/pprof/heap\n", runtime.MemProfileRate)
}

// indexPage lists what there is.
var indexPage = template.Must(template.New("index").Parse(`<!DOCTYPE html>
<title>{{.Name}}</title>
<h1>{{.Name}}</h1>
<table>
{{range .Pages}}<tr><td><a href="{{.Path}}">{{.Path}}</a></td><td>{{.About}}</td></tr>
{{end}}</table>
`))

func (s *Server) index(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_ = indexPage.Execute(w, struct {
		Name  string
		Pages []page
	}{s.cfg.Name, s.pages})
}

// configDump encodes every dump under its name.
func (s *Server) configDump(w http.ResponseWriter, _ *http.Request) {
	all := make(map[string]any, len(s.dumps))
	for _, d := range s.dumps {
		all[d.name] = d.value()
	}
	text, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		http.Error(w, "encode config dump: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(text, '\n'))
}

// LevelPage shows and changes log levels: POST ?level=FILTER and ?reset.
type LevelPage struct {
	Levels Levels
	Log    *slog.Logger
}

// ServeHTTP implements http.Handler.
func (p LevelPage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	if r.Method != http.MethodPost && len(query) > 0 {
		notAllowed(w, "POST changes levels")
		return
	}
	if query.Has("reset") {
		p.Levels.Reset()
	}
	if filter := query.Get("level"); filter != "" {
		if err := p.Levels.Set(filter); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	if len(query) > 0 {
		p.Log.Info("log levels changed", "levels", p.Levels.String())
	}
	fmt.Fprintf(w, "current log level is %s\n", p.Levels)
}

// quit ends the program.
func (s *Server) quit(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		notAllowed(w, "POST ends the program")
		return
	}
	s.cfg.Log.Info("asked to end", "client", r.RemoteAddr)
	fmt.Fprintln(w, "shutdown now")
	s.cfg.Quit()
}

func notAllowed(w http.ResponseWriter, hint string) {
	w.Header().Set("Allow", http.MethodPost)
	http.Error(w, hint, http.StatusMethodNotAllowed)
}
