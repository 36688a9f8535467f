from distil_jax.main import main

if __name__ == "__main__":
  raise SystemExit(main())
