internal import CAttentionKernels

extension CPUUnitPlaces {
  /// Bytes of 64 tokens of keys as a method stores them.
  static func keyBytes(_ dimension: Int, _ method: CPUMethod, _ set: InstructionSet) -> Int {
    let (kernels, dimension) = unsafe (set.kernels, Int32(dimension))
    guard var formats = method.runningFormats else {
      return Int(unsafe kernels.key_bytes(64, dimension, method.hasInt4Key))
    }
    return Int(unsafe kernels.running_key_bytes(&formats, 64, dimension))
  }

  static func valueBytes(_ dimension: Int, _ method: CPUMethod, _ set: InstructionSet) -> Int {
    let (kernels, dimension) = unsafe (set.kernels, Int32(dimension))
    guard var formats = method.runningFormats else {
      return Int(unsafe kernels.value_bytes(64, dimension, method.hasInt4Value))
    }
    return Int(unsafe kernels.running_value_bytes(&formats, 64, dimension))
  }

  /// Of keys in 8 bits, which those in 4 bits begin as, or of floats.
  init(keys dimension: Int, _ method: CPUMethod, _ set: InstructionSet) {
    let kernels = unsafe set.kernels
    if let formats = method.runningFormats {
      unsafe self.init(
        floats: dimension,
        byteCount: Self.keyBytes(dimension, method, set),
        // No set pads 256 channels.
        size: Self.keyBytes(256, method, set) / 64 / 256,
        formats,
        pack: kernels.pack_running_keys
      )
    } else {
      unsafe self.init(
        codes: dimension,
        byteCount: Int(kernels.key_bytes(64, Int32(dimension), false)),
        pack: kernels.pack_keys
      )
    }
  }

  init(values dimension: Int, _ method: CPUMethod, _ set: InstructionSet) {
    let kernels = unsafe set.kernels
    if let formats = method.runningFormats {
      unsafe self.init(
        floats: dimension,
        byteCount: Self.valueBytes(dimension, method, set),
        size: Self.valueBytes(256, method, set) / 64 / 256,
        formats,
        pack: kernels.pack_running_values
      )
    } else {
      unsafe self.init(
        codes: dimension,
        byteCount: Int(kernels.value_bytes(64, Int32(dimension), false)),
        pack: kernels.pack_values
      )
    }
  }

  private init(
    codes dimension: Int,
    byteCount: Int,
    pack: @convention(c) (UnsafePointer<intfa_pack>?) -> Void
  ) {
    unsafe self.init(
      dimension: dimension,
      byteCount: byteCount,
      size: 1,
      pack: { numbers, unit in
        unsafe numbers.withUnsafeBufferPointer { codes in
          var arguments = unsafe intfa_pack()
          unsafe arguments.codes = codes.baseAddress
          unsafe arguments.end = 64
          unsafe arguments.dimension = Int32(dimension)
          unsafe arguments.target = unit
          unsafe pack(&arguments)
        }
      },
      decode: { $0 }
    )
  }

  private init(
    floats dimension: Int,
    byteCount: Int,
    size: Int,
    _ formats: intfa_running_formats,
    pack: @convention(c) (UnsafePointer<intfa_pack_running>?) -> Void
  ) {
    unsafe self.init(
      dimension: dimension,
      byteCount: byteCount,
      size: size,
      pack: { numbers, unit in
        unsafe numbers.map { Float($0) }.withUnsafeBufferPointer { floats in
          var arguments = unsafe intfa_pack_running()
          unsafe arguments.formats = formats
          unsafe arguments.rows = intfa_rows(
            base: floats.baseAddress,
            stride: Int64(dimension),
            format: INTFA_FLOAT32
          )
          unsafe arguments.multiplier = 1
          unsafe arguments.end = 64
          unsafe arguments.dimension = Int32(dimension)
          unsafe arguments.target = unit
          unsafe pack(&arguments)
        }
      },
      decode: { UInt32(Float(bitPattern: size == 2 ? $0 << 16 : $0)) }
    )
  }
}
