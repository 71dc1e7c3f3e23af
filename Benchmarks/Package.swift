// swift-tools-version: 6.1
import PackageDescription

let package = Package(
  name: "benchmarks",
  platforms: [.macOS(.v15)],
  dependencies: [
    // Named, since the folder may be called anything.
    .package(name: "int-flash-attention", path: ".."),
    // Without its traits, which would bring two packages that intercept malloc.
    .package(url: "https://github.com/ordo-one/benchmark", exact: "1.38.1", traits: []),
  ],
  targets: [
    .executableTarget(
      name: "AttentionBenchmarks",
      dependencies: [
        .product(name: "IntFlashAttention", package: "int-flash-attention"),
        .product(name: "Benchmark", package: "benchmark"),
      ],
      path: "Benchmarks/AttentionBenchmarks",
      plugins: [.plugin(name: "BenchmarkPlugin", package: "benchmark")]
    )
  ]
)
