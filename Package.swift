// swift-tools-version: 6.2
import PackageDescription

let swiftSettings: [SwiftSetting] = [
  .swiftLanguageMode(.v6),
  .strictMemorySafety(),
  .treatAllWarnings(as: .error),
  .enableUpcomingFeature("ExistentialAny"),
  .enableUpcomingFeature("InternalImportsByDefault"),
  .enableUpcomingFeature("MemberImportVisibility"),
  .enableExperimentalFeature("Lifetimes"),
]

let package = Package(
  name: "int-flash-attention",
  platforms: [.macOS(.v15), .iOS(.v18)],
  // MARK: Public
  products: [
    .library(name: "IntFlashAttention", targets: ["IntFlashAttention"]),
    .library(name: "IntFlashAttentionCUDA", targets: ["IntFlashAttentionCUDA"]),
    .library(name: "TensorFiles", targets: ["TensorFiles"]),
    .library(name: "int_flash_attention", type: .dynamic, targets: ["IntFlashAttentionABI"]),
    .executable(name: "intfa", targets: ["intfa"]),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.0"),
    .package(url: "https://github.com/hummingbird-project/swift-mustache", from: "2.1.0"),
  ],
  targets: [
    // MARK: Implementation
    .target(name: "CAttentionKernels"),
    .target(name: "CDemoActivations"),
    .target(
      name: "IntFlashAttention",
      dependencies: ["CAttentionKernels"],
      swiftSettings: swiftSettings
    ),
    .target(
      name: "IntFlashAttentionCUDA",
      dependencies: ["IntFlashAttention", "CAttentionKernels"],
      swiftSettings: swiftSettings
    ),
    .target(
      name: "TensorFiles",
      dependencies: ["IntFlashAttention"],
      swiftSettings: swiftSettings
    ),
    .target(name: "CIntFlashAttention"),
    .target(
      name: "IntFlashAttentionABI",
      dependencies: [
        "CIntFlashAttention", "IntFlashAttention", "IntFlashAttentionCUDA", "TensorFiles",
      ],
      swiftSettings: swiftSettings
    ),
    .executableTarget(
      name: "intfa",
      dependencies: [
        "IntFlashAttention",
        "IntFlashAttentionCUDA",
        "TensorFiles",
        "CDemoActivations",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
        .product(name: "Mustache", package: "swift-mustache"),
      ],
      swiftSettings: swiftSettings
    ),
    // What is measured where there is a GPU; Benchmarks/gpu/README.md.
    .executableTarget(
      name: "cuda-check",
      dependencies: [
        "IntFlashAttention",
        "IntFlashAttentionCUDA",
        "TensorFiles",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
      ],
      path: "Benchmarks/gpu/cuda-check",
      swiftSettings: swiftSettings
    ),
    // MARK: Tests
    .target(
      name: "AttentionTestSupport",
      dependencies: ["IntFlashAttention", "TensorFiles"],
      path: "Tests/AttentionTestSupport",
      swiftSettings: swiftSettings
    ),
    .testTarget(
      name: "IntFlashAttentionTests",
      dependencies: [
        "IntFlashAttention",
        "CAttentionKernels",
        "TensorFiles",
        "AttentionTestSupport",
      ],
      resources: [.copy("Vectors")],
      swiftSettings: swiftSettings
    ),
    .testTarget(
      name: "IntFlashAttentionCUDATests",
      dependencies: ["IntFlashAttentionCUDA", "AttentionTestSupport"],
      swiftSettings: swiftSettings
    ),
    .testTarget(
      name: "TensorFilesTests",
      dependencies: ["TensorFiles", "AttentionTestSupport"],
      swiftSettings: swiftSettings
    ),
    .testTarget(
      name: "intfaTests",
      dependencies: ["intfa", "IntFlashAttentionCUDA", "TensorFiles", "AttentionTestSupport"],
      swiftSettings: swiftSettings
    ),
  ],
  cLanguageStandard: .c2x
)

// The documentation plugin is for those who build the documentation, not for clients.
if Context.environment["INTFA_DOCS"] != nil {
  package.dependencies.append(
    .package(url: "https://github.com/swiftlang/swift-docc-plugin", from: "1.4.0")
  )
}
