;; A proxy-wasm 0.2.1 filter that does nothing: what Envoy's wasm machinery costs a request by itself.
;;
;; It has every HTTP callback that the Rust SDK exports as well; each returns 0, "go on". Where true is needed for
;; things to go on (start, configure, done), it is 1.
(module
  (memory (export "memory") 2)

  ;; Envoy places what it hands over here. No callback asks for anything, so only the configuration may come: the one
  ;; place is never in use twice.
  (func (export "proxy_on_memory_allocate") (param $bytes i32) (result i32) (i32.const 1024))

  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_configure") (param i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_context_create") (param i32 i32))

  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (i32.const 0))
  (func (export "proxy_on_request_body") (param i32 i32 i32) (result i32) (i32.const 0))
  (func (export "proxy_on_request_trailers") (param i32 i32) (result i32) (i32.const 0))
  (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32) (i32.const 0))
  (func (export "proxy_on_response_body") (param i32 i32 i32) (result i32) (i32.const 0))
  (func (export "proxy_on_response_trailers") (param i32 i32) (result i32) (i32.const 0))

  (func (export "proxy_on_done") (param i32) (result i32) (i32.const 1))
  (func (export "proxy_on_log") (param i32))
  (func (export "proxy_on_delete") (param i32))
)
